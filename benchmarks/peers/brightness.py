"""The reward of all peers: the mean of an image's pixels. It costs nothing, so that trainers are compared."""

from collections.abc import Sequence

import torch

PROMPTS = ("a cat", "a dog", "a red fox", "two owls")


def score(images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """B numbers in 0..1, differentiable."""
    del prompts
    return images_BCHW.float().mean(dim=(1, 2, 3))
