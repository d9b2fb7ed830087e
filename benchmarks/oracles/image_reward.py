"""The package image-reward 1.5, unedited, over random weights: scores and gradients that a test holds memdiff to.

    sh benchmarks/oracles/make_image_reward_env.sh /tmp/image_reward_env
    /tmp/image_reward_env/bin/python benchmarks/oracles/image_reward.py

writes `image_reward.npz` (numbers) and `image_reward.json` (names, shapes, tokens, provenance) beside this file. Runs
in the environment of the first line, on a CPU, in about 5 GiB and a minute.

The weights are those of `fill.fill(SEED, name, shape)`: the test makes the same 1.8 GB again from the seed, and checks
some of them by their sha256. Token ids are given to the network directly and, for the prompts, made by the package's
tokenizer over a small vocabulary of ours: it takes a folder `bert-base-uncased` in the working directory for the hub's.
"""

import hashlib
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import fill

SEED = 20230412
HERE = Path(__file__).parent
IMAGES = 3
LENGTHS = (35, 12, 2)  # tokens of each image's text that are not padding: full, usual, empty
WORDS = [
    *("a", "the", "of", "photo", "cat", "dog", "red", "green", "on", "mat", "with", "and", "very", "long", "text"),
    *("##s", "##ful", ",", ".", "!", "beauti", "old", "man", "looking"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PROMPTS = (
    "A photo of a cat on the mat.",
    "beautiful old man, looking!",
    "",
    "very " * 60,
    "Caf\u00e9 \u732b dogs\tunknown-word  RED",
)
PHOTOS = ((300, 420), (500, 224), (224, 224), (100, 150))  # heights and widths; photo n is scored for prompts n, n + 1
CHECKED = (
    "blip.visual_encoder.pos_embed",
    "blip.visual_encoder.blocks.7.attn.qkv.weight",
    "blip.text_encoder.encoder.layer.3.crossattention.self.key.weight",
    "mlp.layers.7.weight",
)
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def build() -> Any:
    """The package's model in eval mode, every floating-point tensor of it replaced by the seeded fill."""
    import ImageReward  # pyright: ignore[reportMissingImports]  # only in the oracle's environment

    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "bert-base-uncased" / "vocab.txt"
        vocabulary.parent.mkdir()
        vocabulary.write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
        config = Path(folder) / "med_config.json"
        config.write_text(json.dumps(MED_CONFIG))
        back = Path.cwd()
        os.chdir(folder)
        try:
            model = ImageReward.ImageReward(med_config=str(config), device="cpu")
        finally:
            os.chdir(back)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(fill.fill(SEED, name, tuple(tensor.shape))))
    return model.eval()


def token_ids() -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed ids from the whole vocabulary, IMAGES 35, and their mask: [CLS] first, [PAD] behind the length."""
    ids = fill.generator(SEED, "tokens").integers(1000, 30522, size=(IMAGES, 35))
    mask = (np.arange(35) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids[:, 0] = 101
    return torch.from_numpy(ids * mask), torch.from_numpy(mask)


def main() -> None:
    """Writes the two files."""
    torch.manual_seed(0)
    model = build()
    ids, mask = token_ids()
    leaf = torch.from_numpy(fill.images(SEED, IMAGES, 224)).requires_grad_()
    scores, gradients = [], []
    for row in range(IMAGES):
        pixels = model.preprocess.transforms[-1](leaf[row : row + 1])  # the package's own normalisation
        score = model.score_gard(ids[row : row + 1], mask[row : row + 1], pixels)
        scores.append(score.item())
        gradients.append(torch.autograd.grad(score.sum(), leaf)[0][row].numpy())
        print(f"image {row}: score {score.item():.6f}, gradient norm {np.linalg.norm(gradients[-1]):.4g}", flush=True)
    tokens = model.blip.tokenizer(list(PROMPTS), padding="max_length", truncation=True, max_length=35)
    photos = [fill.photograph(SEED, f"photo {height}x{width}", height, width) for height, width in PHOTOS]
    with torch.no_grad():
        end_to_end = [
            [model.score(PROMPTS[number + shift], Image.fromarray(photo)) for shift in (0, 1)]
            for number, photo in enumerate(photos)
        ]
    gradient = np.stack(gradients)
    direction = fill.generator(SEED, "direction").random(gradient.shape[1:]) - 0.5
    np.savez(
        HERE / "image_reward.npz",
        scores=np.array(scores),
        gradient_norms=np.linalg.norm(gradient.reshape(IMAGES, -1).astype(np.float64), axis=1),
        gradient_projections=(gradient * direction).sum(axis=(1, 2, 3)),
        gradient_strided=gradient[:, :, 3::7, 3::7],
        photo_scores=np.array(end_to_end),
    )
    state = model.state_dict()
    record = {
        "command": "python benchmarks/oracles/image_reward.py",
        "versions": {
            name: version(name) for name in ("image-reward", "torch", "transformers", "timm", "numpy", "pillow")
        },
        "python": platform.python_version(),
        "seed": SEED,
        "lengths": LENGTHS,
        "vocabulary": SPECIAL + WORDS,
        "prompts": PROMPTS,
        "prompt_ids": tokens["input_ids"],
        "prompt_masks": tokens["attention_mask"],
        "photos": PHOTOS,
        "sha256": {name: hashlib.sha256(state[name].numpy().tobytes()).hexdigest() for name in CHECKED},
        "shapes": {name: list(tensor.shape) for name, tensor in state.items()},
    }
    (HERE / "image_reward.json").write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
    print("photo scores", np.array2string(np.array(end_to_end), precision=4))


if __name__ == "__main__":
    main()
