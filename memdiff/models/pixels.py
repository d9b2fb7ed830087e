"""From decoded images to bytes."""

import torch


def to_uint8(images_BCHW: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> 0..255, rounded: B C H W uint8."""
    return (images_BCHW * 255).round().clamp(0, 255).to(torch.uint8)
