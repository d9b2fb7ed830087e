"""Advantages from the rewards of all ranks.

Every function takes the rewards of the whole round, so that each rank computes the same numbers from the same tensor.
Shapes: N images of a round over all ranks.
"""

from collections.abc import Sequence
from typing import Literal

import torch

AdvantageKind = Literal["whiten", "center", "leave_one_out"]


def spread(rewards_N: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """The rewards' population std (ddof 0), a scalar; 0 where it is no more than `epsilon` of the largest |r|.

    Nothing is squared in the rewards' own unit, so that any scale has its std.
    """
    centered = center(rewards_N)
    largest = centered.abs().max()
    unit = centered / torch.where(largest > 0, largest, 1.0)
    std = largest * unit.square().mean().sqrt()
    return torch.where(std > epsilon * rewards_N.abs().max(), std, 0.0)


def whiten(rewards_N: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """(r - mean) / std: N, of unit std whatever the rewards' scale. Exactly zero where `spread` is."""
    std = spread(rewards_N, epsilon=epsilon)
    return torch.where(std > 0, center(rewards_N) / torch.where(std > 0, std, 1.0), 0.0)


def center(rewards_N: torch.Tensor) -> torch.Tensor:
    """r - mean: N. Keeps the rewards' own scale, so that the gradient fades as they agree."""
    shifted = rewards_N - rewards_N[0]  # equal rewards become zeros before any rounding
    return shifted - shifted.mean()


def leave_one_out(rewards_N: torch.Tensor) -> torch.Tensor:
    """r_i - mean of the other rewards: N (Kool et al. 2019). Unbiased. One image: zero."""
    count = len(rewards_N)
    return center(rewards_N) * (count / (count - 1) if count > 1 else 0.0)


def advantages(
    rewards_N: torch.Tensor,
    *,
    kind: AdvantageKind,
    epsilon: float = 1e-6,
    clip: float | None = None,
    groups: Sequence[int] | None = None,
) -> torch.Tensor:
    """Advantages of one round: N fp32. `groups` numbers each image's prompt: every group is treated on its own."""

    def of(rewards_n: torch.Tensor) -> torch.Tensor:
        match kind:
            case "whiten":
                return whiten(rewards_n, epsilon=epsilon)
            case "center":
                return center(rewards_n)
            case "leave_one_out":
                return leave_one_out(rewards_n)

    rewards_N = rewards_N.float()
    if groups is None:
        result_N = of(rewards_N)
    else:
        result_N = torch.empty_like(rewards_N)
        for group in dict.fromkeys(groups):
            members = [image for image, other in enumerate(groups) if other == group]
            result_N[members] = of(rewards_N[members])
    return result_N if clip is None else result_N.clamp(-clip, clip)
