"""A reward of one's own: more ink on the left half of the picture than on the right."""

from collections.abc import Sequence

import torch


def score(images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Mean of the left half minus mean of the right, -1 to 1: B fp32, differentiable."""
    left, right = images_BCHW.chunk(2, dim=3)
    return left.mean(dim=(1, 2, 3)) - right.mean(dim=(1, 2, 3))
