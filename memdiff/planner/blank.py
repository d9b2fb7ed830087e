"""A policy and rewards that neither decode nor score, where another round has measured that already.

Shapes: B rows, c h w of the image.
"""

from collections.abc import Sequence
from typing import Any

import torch

from memdiff.models.latent import LatentPolicy
from memdiff.models.policy import Policy
from memdiff.rewards.config import AnyPart, part_name
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.memory_tags import memory_tag

COLOURS = 3


def blank_policy(policy: Policy) -> None:
    """Its images are as large as real ones, and grey. Pixel models decode with next to nothing, and do so."""
    if not isinstance(policy, LatentPolicy):
        return
    height, width = policy.image_size

    def grey(x_0_BCHW: torch.Tensor) -> torch.Tensor:
        with memory_tag("decoder"):
            mean_B111 = x_0_BCHW.float().mean(dim=(1, 2, 3), keepdim=True)
            return mean_B111.expand(len(x_0_BCHW), COLOURS, height, width).contiguous()

    policy.decode = grey


def blank_reward(parts: Sequence[AnyPart], device: torch.device) -> WeightedReward:
    """As many parts of the same settings, each of them the images' brightness."""
    return WeightedReward(
        [
            WeightedPart(
                part_name(part),
                _Brightness(),
                weight=part.weight,
                chunk=part.chunk,
                normalised=part.normalise == "running",
                features=lambda images_BCHW: images_BCHW.flatten(1)[:, :1],
            )
            for part in parts
        ],
        device=device,
    )


class _Brightness:
    """Scores the mean of each image, in the place of rewards that another round measures."""

    differentiable = True
    networks: Sequence[torch.nn.Module] = ()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Any) -> torch.Tensor:
        return images_BCHW.mean(dim=(1, 2, 3))
