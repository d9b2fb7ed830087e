"""Stable Diffusion XL (Podell et al. 2023): two text encoders, a pooled embedding, and conditioning on sizes.

Shapes: B rows, I = 6 numbers: original height and width, top and left of the crop, target height and width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline

from memdiff.models.latent import LatentPolicy
from memdiff.models.text_encoders import Conditioning


class SdxlPolicy(LatentPolicy):
    """Fulfils memdiff.models.policy.Policy. Images count as uncropped originals of the size they are made in."""

    penultimate: ClassVar[bool] = True
    pipeline_class: ClassVar[Any] = StableDiffusionXLPipeline

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Tokens, pooled embedding and sizes (section 2.2 of the paper), one row a prompt."""
        rows, size = super().conditioning(prompts), self.image_size
        sizes_I = torch.tensor([*size, 0, 0, *size], dtype=self.dtype)
        return replace(rows, sizes_BI=sizes_I.to(self.device, non_blocking=True).expand(len(prompts), -1))

    def pipeline_options(self) -> dict[str, Any]:
        """As it was loaded, without a watermark."""
        return {"force_zeros_for_empty_prompt": self._parts.zero_negative, "add_watermarker": False}
