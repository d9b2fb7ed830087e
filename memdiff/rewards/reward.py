"""What a reward is.

Shapes: B images of one call, C channels (1 or 3), H W pixels.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from memdiff.errors import RewardError


class Reward(Protocol):
    """One family of rewards: images in [0, 1] and their prompts in, one number an image out; larger is better.

    Preprocessing is the reward's own, as differentiable tensor code. `networks` are the modules that placement moves;
    `differentiable` says whether gradients flow from the result to the images.
    """

    differentiable: bool

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """Modules to be moved between host and device; may be empty."""
        ...

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Rewards, B fp32, on the device of the images. `prompts` has B entries, empty strings where there are none.

        The images belong to the caller and are seen by others too: they are not written into.
        """
        ...


def checked(result: object, *, count: int, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`result` in `dtype` if it is a tensor of `count` numbers; else RewardError: expected, got."""
    if not isinstance(result, torch.Tensor):
        raise RewardError(f"reward {name} must return {count} numbers for {count} images, got {type(result).__name__}")
    if result.shape != (count,):
        raise RewardError(
            f"reward {name} must return {count} numbers for {count} images, shape ({count},), got shape "
            f"{tuple(result.shape)}; nothing is broadcast"
        )
    return result.to(dtype)
