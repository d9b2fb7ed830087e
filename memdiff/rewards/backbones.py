"""Networks that several parts of a reward read: loaded once, and run once for the same images.

Ten labels of one classifier are one network and one forward. A part is a head on it.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from memdiff.rewards.reward import Reward

Made = TypeVar("Made")
Backbone = Callable[[torch.Tensor], torch.Tensor]  # images_BCHW in [0, 1] -> what its heads read, B ...


@runtime_checkable
class Headed(Reward, Protocol):
    """A reward whose call is `head(backbone(images), prompts)`. Those that share a network have the same backbone."""

    backbone: Backbone

    def head(self, outputs: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Rewards from what the backbone returned: B fp32."""
        ...


class Backbones:
    """What the parts of one list have loaded so far."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returned when it was first asked for by this key: all that a network is made of."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def of_one_backbone(rewards: Sequence[Reward], chunks: Sequence[int]) -> list[list[int]]:
    """The numbers of rewards whose forwards are one: the same backbone, the same number of images at a time."""
    groups: dict[Hashable, list[int]] = {}
    for number, (reward, chunk) in enumerate(zip(rewards, chunks, strict=True)):
        key = (id(reward.backbone), chunk) if isinstance(reward, Headed) else number
        groups.setdefault(key, []).append(number)
    return list(groups.values())
