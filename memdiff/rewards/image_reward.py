"""ImageReward (Xu et al. 2023, arXiv 2304.05977) on transformers' BLIP modules.

The checkpoint is read as THUDM publishes it; names and hyperparameters follow the package image-reward 1.5, which
benchmarks/oracles/ runs unedited as the truth of the tests. Left out against the package: the projections of BLIP's
contrastive loss, which the score never reads, and its mask over image tokens, which is all ones.

Shapes: B images, C channels (1 or 3), H W pixels, S = 224 the network's side, N = 197 image tokens, L = 35 text tokens,
D E the widths of vision and text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from memdiff.errors import ConfigError, RewardError
from memdiff.rewards.families_config import ImageRewardConfig
from memdiff.rewards.preprocess import CLIP_MEAN, CLIP_STD, resize, standardise, to_rgb
from memdiff.rewards.pretrained import network_dtype
from memdiff.rewards.weights import find_weights, load_weights
from memdiff.runtime.half_precision import call_network
from memdiff.runtime.placement import place, upload
from memdiff.runtime.state_dicts import assign_strictly

WEIGHTS = "ImageReward.pt"
VOCABULARY = "vocab.txt"
VOCABULARY_SOURCE = "google-bert/bert-base-uncased"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LENGTH = 35
SCORE_MEAN = 0.16717362830052426  # of the raw scores on the authors' data, as the package writes them
SCORE_STD = 1.0333394966054072
MASKED = -10000.0  # added to the attention logits of padding, as in the package; exp() of it is 0 in fp32 and in fp16

DROPPED = re.compile(r"blip\.(vision_proj|text_proj)\.|\.position_ids$")
RENAMED = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.(\d+)\.", r"vision.encoder.layers.\1."),
    (r"^(vision\.encoder\.layers\.\d+\.)norm([12])\.", r"\1layer_norm\2."),
    (r"^(vision\.encoder\.layers\.\d+\.)attn\.qkv\.", r"\1self_attn.qkv."),
    (r"^(vision\.encoder\.layers\.\d+\.)attn\.proj\.", r"\1self_attn.projection."),
)


def vision_config() -> BlipVisionConfig:
    """ViT-L/16 at 224. The library's defaults for heads and eps load the same weights and score wrong."""
    return BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def text_config() -> BlipTextConfig:
    """BERT-base with cross-attention to the image: what the checkpoint's med_config.json says."""
    return BlipTextConfig(
        vocab_size=30524,
        hidden_size=768,
        encoder_hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=512,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # gives the layers their cross-attention; they are run without a causal mask
    )


class ImageRewardNet(torch.nn.Module):
    """Vision transformer, text encoder that attends to it, and a linear head; frozen, in eval mode."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        assert isinstance(vision.image_size, int)
        self.side = vision.image_size
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.mlp = _Head(text.hidden_size)
        self.requires_grad_(False).eval()

    def features(
        self, pixels_BCSS: torch.Tensor, ids_BL: torch.Tensor, lengths_B: torch.Tensor, *, checkpointing: bool = False
    ) -> torch.Tensor:
        """The text encoder's first token over normalised pixels: B E, in the dtype of the transformers.

        `lengths_B` counts the tokens of each row that are not padding. `checkpointing` recomputes each layer in the
        backward pass; frozen modules in eval mode would not do so by the library's own switch.
        """
        again = checkpointing and torch.is_grad_enabled() and pixels_BCSS.requires_grad
        image_BND = self.vision.embeddings(pixels_BCSS)
        for layer in self.vision.encoder.layers:
            image_BND = _run(layer, image_BND, again=again)
        image_BND = self.vision.post_layernorm(image_BND)
        padding_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) >= lengths_B[:, None]
        mask_B11L = (padding_BL * MASKED).to(image_BND.dtype)[:, None, None, :]
        text_BLE = self.text.embeddings(ids_BL)
        for layer in self.text.encoder.layer:
            text_BLE = _run(layer, text_BLE, image_BND, mask_B11L, again=again)
        return text_BLE[:, 0]

    def head(self, features_BE: torch.Tensor) -> torch.Tensor:
        """Scores of the features, less SCORE_MEAN and divided by SCORE_STD: B."""
        return (self.mlp.layers(features_BE)[:, 0] - SCORE_MEAN) / SCORE_STD


class _Head(torch.nn.Module):
    """Five linear layers without activations; the dropout between them holds the checkpoint's places 1, 3, 5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        linear, dropout = torch.nn.Linear, torch.nn.Dropout
        self.layers = torch.nn.Sequential(
            linear(width, 1024), dropout(0.2), linear(1024, 128), dropout(0.2), linear(128, 64), dropout(0.1),
            linear(64, 16), linear(16, 1),
        )  # fmt: skip


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    module.to(dtype)


def _run(layer: torch.nn.Module, *inputs: torch.Tensor, again: bool) -> torch.Tensor:
    if again:
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)  # eval mode draws nothing
    return layer(*inputs)


class ImageReward:
    """Fulfils memdiff.rewards.reward.Reward: standardised ImageReward scores, about -2.5 to 2.5, differentiable.

    The transformers run in `dtype`, preprocessing and head in fp32. With `prompt` every image is scored for that text,
    whatever prompts come with them. The text encoder attends to the image in every layer, so of a prompt only its
    tokens can be kept.
    """

    differentiable = True

    def __init__(
        self,
        net: ImageRewardNet,
        tokenizer: Callable[..., Mapping[str, Any]],
        *,
        prompt: str | None = None,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
    ) -> None:
        _cast(net.vision, dtype)
        _cast(net.text, dtype)
        net.mlp.float()
        self.net, self.dtype, self.checkpointing = net, dtype, checkpointing
        self._tokenizer, self._prompt = tokenizer, prompt
        # Python numbers, not tensors: a plan calls this under fake tensors, and those must not outlive it.
        self._tokens: dict[str, tuple[list[int], int]] = {}

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The one network, which reads the image and the text."""
        return (self.net,)

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores, B fp32. Raises RewardError unless there is one prompt an image."""
        if len(prompts) != len(images_BCHW):
            raise RewardError(
                f"ImageReward needs one prompt an image, got {len(prompts)} for {len(images_BCHW)} images"
            )
        ids_BL, lengths_B = self.tokens(prompts, images_BCHW.device)
        pixels_BCSS = preprocess(images_BCHW.float(), self.net.side)
        features_BE = call_network(
            lambda pixels: self.net.features(pixels, ids_BL, lengths_B, checkpointing=self.checkpointing),
            pixels_BCSS,
            self.dtype,
        )
        return self.net.head(features_BE)

    def tokens(self, prompts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids, B L, padded and cut to 35, and how many of each row are not padding, B."""
        texts = [prompt if self._prompt is None else self._prompt for prompt in prompts]
        new = [text for text in dict.fromkeys(texts) if text not in self._tokens]
        if new:
            encoding = self._tokenizer(new, padding="max_length", truncation=True, max_length=LENGTH)
            for text, ids, mask in zip(new, encoding["input_ids"], encoding["attention_mask"], strict=True):
                self._tokens[text] = ids, sum(mask)
        rows = [self._tokens[text] for text in texts]
        ids_BL = torch.tensor([ids for ids, _ in rows], dtype=torch.long)
        lengths_B = torch.tensor([length for _, length in rows], dtype=torch.long)
        return upload(ids_BL, device), upload(lengths_B, device)


def preprocess(images_BCHW: torch.Tensor, side: int) -> torch.Tensor:
    """CLIP's: the shorter side to `side` (bicubic, antialiased), the middle square of it, CLIP's mean and std.

    As the package does on PIL images, up to PIL's rounding to 8 bits.
    """
    height, width = images_BCHW.shape[-2:]
    if (height, width) != (side, side):
        size = (int(side * height / min(height, width)), int(side * width / min(height, width)))
        top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
        images_BCHW = resize(images_BCHW, size, "bicubic")[:, :, top : top + side, left : left + side]
    return standardise(to_rgb(images_BCHW), CLIP_MEAN, CLIP_STD)


def load_image_reward(part: ImageRewardConfig, device: torch.device, *, cache: Path | None = None) -> ImageReward:
    """From a hub id, a folder with ImageReward.pt, or the file; on `device`.

    The tokens come from a `vocab.txt` beside the weights, else from google-bert/bert-base-uncased. `cache` is where
    `load_weights` keeps the converted file. Raises ConfigError in one line where either is missing, damaged, or of
    another architecture.
    """
    path = find_weights(part.path, WEIGHTS, part.revision)
    tokenizer = load_tokenizer(path.parent)
    with torch.device("meta"):  # no second copy of 1.8 GB, and no random initialisation
        net = ImageRewardNet(vision_config(), text_config())
    assign_strictly(net, to_blip(load_weights(path, cache=cache)), str(path))
    # The one tensor that is not in the file.
    positions_1P = torch.arange(text_config().max_position_embeddings)[None]
    net.text.embeddings.register_buffer("position_ids", positions_1P, persistent=False)
    return _placed(part, net, tokenizer, device)


def skeleton_image_reward(part: ImageRewardConfig, device: torch.device) -> ImageReward:
    """The same network without its weights; every prompt has all its tokens, and they say nothing."""
    return _placed(part, ImageRewardNet(vision_config(), text_config()), _no_words, device)


def _no_words(texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
    return {"input_ids": [[0] * LENGTH for _ in texts], "attention_mask": [[1] * LENGTH for _ in texts]}


def _placed(
    part: ImageRewardConfig, net: ImageRewardNet, tokenizer: Callable[..., Mapping[str, Any]], device: torch.device
) -> ImageReward:
    dtype = network_dtype(part.precision, device)
    reward = ImageReward(net, tokenizer, prompt=part.prompt, dtype=dtype, checkpointing=part.checkpointing)
    place(net, device)
    return reward


def to_blip(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the names of ImageRewardNet: 625 -> 620, one to one; names it doesn't know stay."""
    renamed = {}
    for name, tensor in tensors.items():
        if DROPPED.search(name):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def load_tokenizer(folder: Path) -> BertTokenizer:
    """bert-base-uncased's tokenizer over `vocab.txt` of a folder, or of the hub where the folder has none."""
    path = folder / VOCABULARY
    if not path.is_file():
        path = find_weights(VOCABULARY_SOURCE, VOCABULARY)
    try:
        with path.open(encoding="utf-8") as file:
            words = {line.rstrip("\n"): number for number, line in enumerate(file)}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read as a vocabulary: {error}") from None
    if not set(SPECIAL) <= set(words) or len(words) > text_config().vocab_size:
        raise ConfigError(
            f"{path} is not the vocabulary of bert-base-uncased: it has {len(words)} words, and must hold "
            f"{', '.join(SPECIAL)}; fetch it: hf download {VOCABULARY_SOURCE} {VOCABULARY}"
        )
    return BertTokenizer(vocab=words)
