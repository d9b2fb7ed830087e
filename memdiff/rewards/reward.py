"""What a reward is.

Shapes: B images of one call, C channels (1 or 3), H W pixels.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from memdiff.errors import RewardError
from memdiff.models.batches_that_fit import batches_that_fit
from memdiff.processes import landmarks
from memdiff.runtime.half_precision import widen


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


def score(reward: Reward, images_BCHW: torch.Tensor, prompts: Sequence[str], *, chunk: int, name: str) -> torch.Tensor:
    """B rewards in chunks of at most `chunk` images, checked: a mistake is a RewardError that names the reward.

    fp32, whatever the reward returns; fp64 for images in fp64. Without a graph, a chunk that memory runs out in is made
    again in halves.
    """

    def score_chunk(rows: list[int], count: int) -> torch.Tensor:
        here = slice(rows[0], rows[0] + count)
        images, texts = images_BCHW[here], prompts[here]
        version = images._version
        with landmarks.at(f"reward {name}"):
            result = reward(images, texts)
        if images._version != version:
            raise RewardError(
                f"reward {name} wrote into the images it was given, which others see too; clone them first"
            )
        return checked(result, count=len(images), name=name, dtype=widen(images[:0]).dtype)

    rows = range(len(images_BCHW))
    if torch.is_grad_enabled():  # a graph of halves takes as much: the caller's piece is made again
        parts = [score_chunk(list(some), len(some)) for some in (rows[i : i + chunk] for i in rows[::chunk])]
    else:
        parts = list(batches_that_fit(reward, f"reward {name}", rows, min(chunk, len(rows)), score_chunk))
    return torch.cat(parts) if parts else images_BCHW.new_zeros(0, dtype=torch.float32)


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
