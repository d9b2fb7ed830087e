"""Randomly filled reward models in their real file formats, and an independent open_clip to hold ours against.

Not a test file: the tests of the rewards on transformers import it.
"""

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

MERGES = ("c a", "ca t</w>", "d o", "do g</w>")
START, END = "<|startoftext|>", "<|endoftext|>"


def make_vocabulary(size: int) -> dict[str, int]:
    """All bytes, all bytes that end a word, `cat`, `dog`, filling, and the two marks last, as in CLIP's own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(m.split()) for m in MERGES)]
    filling = [f"<{number}>" for number in range(len(words), size - 2)]
    return {word: number for number, word in enumerate([*words, *filling, START, END])}


VOCABULARY = make_vocabulary(518)


def write_tokenizer(folder: Path, vocabulary: dict[str, int] = VOCABULARY) -> None:
    """vocab.json and merges.txt, as OpenAI and Google publish them."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")


def ids_by_hand(text: str, vocabulary_size: int) -> list[int]:
    """Token ids of a sentence of `cat`s, `dog`s and single letters."""
    words = [VOCABULARY[word + "</w>"] for word in text.split()]  # the same ids in both vocabularies
    return [vocabulary_size - 2, *words, vocabulary_size - 1]


def shake(module: nn.Module, seed: int, size: float = 0.05) -> None:
    """Moves every parameter, so that no bias is 0 and no scale is 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "logit_scale" not in name or parameter.ndim:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def tiny_clip_config(**changes: object) -> CLIPConfig:
    """Two layers, 32 x 32 pixels; its inner projection_dim are wrong, as those of the public ViT-H-14 are."""
    text = {
        "vocab_size": len(VOCABULARY), "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": 16, "eos_token_id": VOCABULARY[END],
        "bos_token_id": VOCABULARY[START], "projection_dim": 512,
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8, "projection_dim": 512,
    }  # fmt: skip
    return CLIPConfig(text_config=text | changes, vision_config=vision | changes, projection_dim=24)


def write_clip(folder: Path, config: CLIPConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> CLIPModel:
    """A CLIPModel folder with tokenizer, as transformers saves it; returns the model, in `dtype`."""
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    shake(model, seed)
    model.to(dtype).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    write_tokenizer(folder, make_vocabulary(model.text_model.config.vocab_size))
    return model


def aesthetic_weights(width: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """The keys and shapes of sac+logos+ava1-l14-linearMSE.pth, whose first layer is 768 wide."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    weights = OrderedDict()
    for number, (rows, columns) in sizes.items():
        weights[f"layers.{number}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        weights[f"layers.{number}.bias"] = torch.randn(rows, generator=generator)
    return weights


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return open, (self.marker, "w")


def write_trap(path: Path, marker: Path) -> None:
    """A weight file that wants to run code when it is read."""
    path.write_bytes(pickle.dumps({"state_dict": {"weight": Trap(marker)}}))


class _Block(nn.Module):
    """open_clip's ResidualAttentionBlock: pre-norm, fused in_proj, plain gelu."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x_LBD: torch.Tensor, mask_LL: torch.Tensor | None) -> torch.Tensor:
        h_LBD = self.ln_1(x_LBD)
        x_LBD = x_LBD + self.attn(h_LBD, h_LBD, h_LBD, need_weights=False, attn_mask=mask_LL)[0]
        return x_LBD + self.mlp(self.ln_2(x_LBD))


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([_Block(width, heads) for _ in range(layers)])

    def forward(self, x_BLD: torch.Tensor, mask_LL: torch.Tensor | None = None) -> torch.Tensor:
        x_LBD = x_BLD.transpose(0, 1)
        for block in self.resblocks:
            x_LBD = block(x_LBD, mask_LL)
        return x_LBD.transpose(0, 1)


class _Visual(nn.Module):
    def __init__(self, side: int, patch: int, width: int, layers: int, heads: int, embed: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _Transformer(width, layers, heads)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, embed))

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        x_BLD = self.conv1(pixels_B3SS).flatten(2).transpose(1, 2)
        first_B1D = self.class_embedding.expand(len(x_BLD), 1, -1)
        x_BLD = self.ln_pre(torch.cat([first_B1D, x_BLD], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x_BLD))[:, 0] @ self.proj


class OpenClip(nn.Module):
    """open_clip's CLIP from its source (transformer.py, model.py), with its attribute names; nothing is memdiff's."""

    def __init__(
        self, *, side: int, patch: int, vision: tuple[int, int, int], text: tuple[int, int, int], embed: int,
        vocabulary: int, context: int,
    ) -> None:  # fmt: skip
        """`vision` and `text` are (width, layers, heads)."""
        super().__init__()
        self.visual = _Visual(side, patch, *vision, embed)
        self.transformer = _Transformer(*text)
        self.token_embedding = nn.Embedding(vocabulary, text[0])
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context, text[0]))
        self.ln_final = nn.LayerNorm(text[0])
        self.text_projection = nn.Parameter(text[0] ** -0.5 * torch.randn(text[0], embed))
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        self.context = context

    def encode_text(self, ids_B: list[int]) -> torch.Tensor:
        """Of one text, padded with zeros to the context length as open_clip's tokenizer does: 1 D."""
        ids_1L = torch.tensor([ids_B + [0] * (self.context - len(ids_B))])
        mask_LL = torch.full((self.context, self.context), -torch.inf).triu(1)
        x_1LD = self.ln_final(self.transformer(self.token_embedding(ids_1L) + self.positional_embedding, mask_LL))
        return x_1LD[torch.arange(1), ids_1L.argmax(dim=-1)] @ self.text_projection


def tiny_open_clip(seed: int = 0) -> OpenClip:
    """Head widths 80 and 64, as ViT-H-14 has them."""
    torch.manual_seed(seed)
    model = OpenClip(
        side=32, patch=8, vision=(160, 2, 2), text=(128, 2, 2), embed=24, vocabulary=len(VOCABULARY), context=16
    )
    shake(model, seed)
    return model.eval()


def write_hps(folder: Path, model: OpenClip, *, dtype: torch.dtype = torch.float32, version: str = "2.1") -> None:
    """The .pt as xswu/HPSv2 names it, its tensors under `state_dict`."""
    folder.mkdir(exist_ok=True, parents=True)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    torch.save(
        {"state_dict": state}, folder / {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}[version]
    )
    write_tokenizer(folder, make_vocabulary(model.token_embedding.num_embeddings))


def write_classifier(folder: Path, kind: str = "vit") -> Any:
    """A tiny ViT (as rizvandwiki/gender-classification is one) or ResNet (as microsoft/resnet-50), as published."""
    labels: dict[str, Any] = {"id2label": {0: "female", 1: "male"}, "label2id": {"female": 0, "male": 1}}
    torch.manual_seed(0)
    if kind == "vit":
        config = ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
            patch_size=8, **labels,
        )  # fmt: skip
        model: Any = ViTForImageClassification(config)
        processor: dict[str, Any] = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    else:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **labels)
        model = ResNetForImageClassification(config)
        processor = {
            "size": 32,
            "crop_pct": 0.875,
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2] * 3,
            "resample": 3,
        }
    shake(model, 0)
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model
