"""A reward of one's own: how much ink is on the picture."""

from collections.abc import Sequence

import torch


def score(images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """The mean of each image: the embedded models write in white (1) on black (0). B fp32, differentiable."""
    return images_BCHW.mean(dim=(1, 2, 3))
