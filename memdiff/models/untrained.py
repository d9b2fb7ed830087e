"""A written-down architecture as networks, with the weights torch starts them with: for plans and tests.

Under torch.device("meta") or fake tensors nothing is allocated.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from memdiff.models.architectures import LatentArchitecture
from memdiff.models.latent import LatentParts


class NoTokenizer:
    """Stands in for a CLIP tokenizer where the words don't matter: ends of text only."""

    def __init__(self, length: int, end: int) -> None:
        self.model_max_length, self.end = length, end

    def __call__(self, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, B L each."""
        del options
        ids = torch.full((len(texts), self.model_max_length), self.end)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def untrained_parts(architecture: LatentArchitecture, *, resolution: int | None = None) -> LatentParts:
    """Stable Diffusion's or SDXL's parts. They can't be saved as a pipeline: there are no tokenizers."""
    configs = [CLIPTextConfig(**config) for config in architecture.text_encoders]
    names = [f"text_encoder{number}" for number in ("", "_2")[: len(configs)]]
    encoders = [CLIPTextModel(configs[0]), *(CLIPTextModelWithProjection(config) for config in configs[1:])]
    tokenizers = [NoTokenizer(config.max_position_embeddings, config.vocab_size - 1) for config in configs]
    return LatentParts(
        unet=UNet2DConditionModel(**architecture.unet),
        vae=AutoencoderKL(**architecture.vae),
        scheduler=DDIMScheduler(**architecture.scheduler),
        text_encoders=dict(zip(names, encoders, strict=True)),
        tokenizers={name.replace("text_encoder", "tokenizer"): t for name, t in zip(names, tokenizers, strict=True)},
        resolution=resolution,
        zero_negative=architecture.zero_negative,
    )
