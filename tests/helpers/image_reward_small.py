"""What the tests of ImageReward share: the oracle's record, and a reduced network written out in plain torch.

Shapes: B images, C channels, H W pixels, S the network's side, N image tokens, L text tokens.
"""

import importlib.util
import json
from pathlib import Path

import torch
import torch.nn.functional as functional
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig

from memdiff.rewards.image_reward import LENGTH, SCORE_MEAN, SCORE_STD, ImageReward, ImageRewardNet, to_blip
from memdiff.runtime.state_dicts import assign_strictly

ORACLES = Path(__file__).parents[2] / "benchmarks" / "oracles"
RECORD = json.loads((ORACLES / "image_reward.json").read_text(encoding="utf-8"))
SEED = RECORD["seed"]
TOLERANCE = 1e-4

_spec = importlib.util.spec_from_file_location("oracle_fill", ORACLES / "fill.py")
assert _spec is not None and _spec.loader is not None
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)

SIDE, HEADS, TEXT_HEADS = 48, 4, 3
SMALL = {
    "blip.visual_encoder": {1024: 32, 3072: 96, 4096: 64, 197: 10},
    "blip.text_encoder": {768: 24, 3072: 48, 1024: 32, 30524: len(RECORD["vocabulary"]), 512: 40},
    "mlp": {768: 24},
}
PROMPTS = ["a photo of the cat", "old dog, looking at the red mat", "", "very " * 60, "green", "man", "cat", "a cat"]


def small_checkpoint(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The checkpoint's names with two layers and small widths, seeded values, under the authors' names."""
    tensors = {}
    for name, shape in RECORD["shapes"].items():
        layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        sizes = next((sizes for prefix, sizes in SMALL.items() if name.startswith(prefix)), None)
        if sizes is None or name.endswith("position_ids") or (layer > 1 and not name.startswith("mlp")):
            continue
        small = tuple(
            sizes.get(n, n) if not (name.startswith("mlp") and place == 0) else n for place, n in enumerate(shape)
        )
        tensors[name] = torch.from_numpy(fill.fill(SEED, name, small)).to(dtype)
    return tensors


def small_net(
    *, heads: int = HEADS, text_heads: int = TEXT_HEADS, eps: float = 1e-6, text_eps: float = 1e-12
) -> ImageRewardNet:
    net = ImageRewardNet(
        BlipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads, image_size=SIDE,
            patch_size=16, layer_norm_eps=eps,
        ),
        BlipTextConfig(
            vocab_size=len(RECORD["vocabulary"]), hidden_size=24, encoder_hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=text_heads, max_position_embeddings=40, layer_norm_eps=text_eps,
            is_decoder=True,
        ),
    )  # fmt: skip
    assign_strictly(net, to_blip(small_checkpoint()), "the small checkpoint")
    return net


def small_reward(**options) -> ImageReward:
    words = {word: number for number, word in enumerate(RECORD["vocabulary"])}
    return ImageReward(small_net(), BertTokenizer(vocab=words), **options)


def small_images(count: int = 8, side: int = SIDE) -> torch.Tensor:
    return torch.from_numpy(fill.images(SEED, count, side))


def plain_score(
    t: dict[str, torch.Tensor], pixels_BCSS: torch.Tensor, ids_BL: torch.Tensor, mask_BL: torch.Tensor
) -> torch.Tensor:
    """The network written out from the checkpoint's own names: nothing of transformers, nothing of the key map."""

    def linear(x, name):
        return functional.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    def norm(x, name, eps):
        return functional.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)

    def attend(q, k, v, heads, allowed=None):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)

    at = "blip.visual_encoder."
    x = functional.conv2d(pixels_BCSS, t[f"{at}patch_embed.proj.weight"], t[f"{at}patch_embed.proj.bias"], stride=16)
    x = torch.cat([t[f"{at}cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + t[f"{at}pos_embed"]
    for n in range(2):
        block = f"{at}blocks.{n}."
        x = x + linear(
            attend(*linear(norm(x, f"{block}norm1", 1e-6), f"{block}attn.qkv").chunk(3, -1), HEADS), f"{block}attn.proj"
        )
        x = x + linear(functional.gelu(linear(norm(x, f"{block}norm2", 1e-6), f"{block}mlp.fc1")), f"{block}mlp.fc2")
    image = norm(x, f"{at}norm", 1e-6)

    at = "blip.text_encoder."
    words = f"{at}embeddings."
    h = t[f"{words}word_embeddings.weight"][ids_BL] + t[f"{words}position_embeddings.weight"][: ids_BL.shape[1]]
    h = norm(h, f"{words}LayerNorm", 1e-12)
    for n in range(2):
        layer = f"{at}encoder.layer.{n}."
        for kind, source, allowed in (
            ("attention", None, mask_BL[:, None, None, :].bool()),
            ("crossattention", image, None),
        ):
            to = f"{layer}{kind}."
            source = h if source is None else source
            read = attend(
                linear(h, f"{to}self.query"), linear(source, f"{to}self.key"), linear(source, f"{to}self.value"),
                TEXT_HEADS, allowed,
            )  # fmt: skip
            h = norm(linear(read, f"{to}output.dense") + h, f"{to}output.LayerNorm", 1e-12)
        wide = functional.gelu(linear(h, f"{layer}intermediate.dense"))
        h = norm(linear(wide, f"{layer}output.dense") + h, f"{layer}output.LayerNorm", 1e-12)
    r = h[:, 0]
    for n in (0, 2, 4, 6, 7):
        r = linear(r, f"mlp.layers.{n}")
    return (r[:, 0] - SCORE_MEAN) / SCORE_STD


def net_score(net: ImageRewardNet, pixels_BCSS: torch.Tensor, ids_BL: torch.Tensor, mask_BL: torch.Tensor):
    return net.head(net.features(pixels_BCSS, ids_BL, mask_BL.sum(1)))


def tokens_of(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BL, lengths_B = small_reward().tokens(prompts, torch.device("cpu"))
    return ids_BL, torch.arange(LENGTH) < lengths_B[:, None]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())
