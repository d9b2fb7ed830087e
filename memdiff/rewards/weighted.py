"""The weighted sum of a recipe's reward parts, every part's own score kept.

Shapes: P parts, B images of one call, N images over all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memdiff.errors import RewardError
from memdiff.placement import place
from memdiff.rewards.reward import Reward, score


@dataclass(frozen=True)
class WeightedPart:
    """One part. `target_share` turns yes/no scores into a pull towards that share of yes."""

    name: str
    reward: Reward
    weight: float = 1.0
    chunk: int = 32
    is_share: bool = False
    target_share: float | None = None


class WeightedReward:
    """Scores on each rank, sums over what all ranks scored: a part may depend on the whole round.

    `device` is where the parts run; images are brought there and the scores back.
    """

    def __init__(self, parts: Sequence[WeightedPart], *, device: torch.device) -> None:
        self.parts, self.device = tuple(parts), device

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts, in order."""
        return tuple(part.name for part in self.parts)

    def raw(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Every part's own scores: P B fp32, on the images' device. RewardError where one is not finite."""
        if not self.parts:
            return images_BCHW.new_zeros(0, len(images_BCHW))
        images = place(images_BCHW, self.device)
        rows = [score(part.reward, images, prompts, chunk=part.chunk, name=part.name) for part in self.parts]
        return place(torch.stack(rows), images_BCHW.device)

    def combine(self, raw_PN: torch.Tensor) -> torch.Tensor:
        """The total reward of a round's images from their raw scores over all ranks: N fp32."""
        total_N = raw_PN.new_zeros(raw_PN.shape[1])
        for part, scores_N in zip(self.parts, raw_PN, strict=True):
            shaped_N = scores_N if part.target_share is None else towards_share(scores_N, part.target_share)
            total_N = total_N + part.weight * shaped_N
        return total_N

    def move(self, device: torch.device) -> None:
        """Takes the parts' networks to `device`; they are brought back before they score."""
        for part in self.parts:
            for network in part.reward.networks:
                place(network, device)


def towards_share(yes_N: torch.Tensor, target: float) -> torch.Tensor:
    """2 (target - share) yes_i: N. Its policy gradient is that of -(share - target)^2, since d share = mean of d yes.

    It fades as the share nears the target, so pair it with `advantage: center` or `leave_one_out`: whitening would blow
    it up again.
    """
    return 2 * (target - yes_N.mean()) * yes_N


def refuse_non_finite(raw_PN: torch.Tensor, names: Sequence[str], prompts: Sequence[str] | None = None) -> None:
    """RewardError naming the first part and image (number in the round) whose score is NaN or infinite."""
    broken = (~raw_PN.isfinite()).nonzero()
    if len(broken):
        part, image = (int(index) for index in broken[0])
        prompt = f", prompt {prompts[image]!r}" if prompts and prompts[image] else ""
        raise RewardError(
            f"reward {names[part]} gave {float(raw_PN[part, image])} for image {image} of the round{prompt}; "
            f"{len(broken)} of {raw_PN.numel()} scores are not finite"
        )
