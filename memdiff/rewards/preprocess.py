"""Preprocessing of reward models as differentiable tensor code.

Shapes: B images, C channels (1 or 3), H W pixels, S the network's side in pixels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn.functional import interpolate

from memdiff.runtime.placement import numbers_on

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Interpolation = Literal["bicubic", "bilinear"]


def to_rgb(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Grey images as three equal channels: B 3 H W."""
    return images_BCHW.expand(-1, 3, -1, -1) if images_BCHW.shape[1] == 1 else images_BCHW


def resize(images_BCHW: torch.Tensor, size: tuple[int, int], interpolation: Interpolation) -> torch.Tensor:
    """Antialiased resize to (height, width), as PIL does it up to its rounding to 8 bits; clamped back to [0, 1]."""
    if images_BCHW.shape[-2:] == size:
        return images_BCHW
    resized = interpolate(images_BCHW, size=size, mode=interpolation, antialias=True, align_corners=False)
    return resized.clamp(0, 1)  # bicubic overshoots at edges, and PIL saturates


def standardise(images_BCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(images - mean) / std by channel: B 3 H W."""
    mean_311, std_311 = (
        numbers_on(images_BCHW.device, values, dtype=images_BCHW.dtype).view(-1, 1, 1) for values in (mean, std)
    )
    return (images_BCHW - mean_311) / std_311
