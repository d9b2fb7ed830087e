"""Scores that are NaN or infinite: an error, left out or clamped, as each part says.

Shapes: P parts, N images over all ranks, M <= N of them that count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from memdiff.errors import RewardError
from memdiff.rewards.weighted_sum import WeightedPart, refuse_non_finite


@dataclass(frozen=True)
class Settled:
    """Finite scores of the images that count, by their numbers in the round."""

    raw_PN: torch.Tensor  # P M
    images: Sequence[int]
    num_images: int  # N
    metrics: dict[str, int] = field(default_factory=dict)  # how many were left out or clamped, where any part asks so

    def of_counted(self, texts: Sequence[str]) -> Sequence[str]:
        """Of N texts those of the images that count; none where there are none."""
        return [texts[image] for image in self.images] if texts and len(self.images) < self.num_images else texts

    def with_zeros(self, values_M: torch.Tensor) -> torch.Tensor:
        """One value for each image of the round, 0 for those that don't count: N."""
        if len(self.images) == self.num_images:
            return values_M
        values_N = values_M.new_zeros(self.num_images)
        values_N[self.images] = values_M
        return values_N


def settle(raw_PN: torch.Tensor, parts: Sequence[WeightedPart], prompts: Sequence[str]) -> Settled:
    """What a round goes on with: the same on every rank, from the same scores.

    Raises RewardError, naming part, image and prompt, for a part that has it so, and where no image is left.
    """
    images, count = list(range(raw_PN.shape[1])), {"drop": 0, "clamp": 0}
    metrics = {f"rewards_{part.non_finite}": 0 for part in parts if part.non_finite != "error"}
    if bool(raw_PN.isfinite().all()):
        return Settled(raw_PN, images, len(images), metrics)
    raw_PN = raw_PN.clone()
    dropped_N = torch.zeros_like(raw_PN[0], dtype=torch.bool) if len(raw_PN) else raw_PN.new_zeros(0).bool()
    strict = [number for number, part in enumerate(parts) if part.non_finite == "error"]
    refuse_non_finite(raw_PN[strict], [parts[number].name for number in strict], prompts)
    for number, part in enumerate(parts):
        broken_N = ~raw_PN[number].isfinite()
        match part.non_finite:
            case "error":
                continue
            case "drop":
                dropped_N |= broken_N
            case "clamp":
                count["clamp"] += int(broken_N.sum())
                raw_PN[number] = clamped(raw_PN[number], part)
    images = [image for image in images if not dropped_N[image]]
    count["drop"] = int(dropped_N.sum())
    if not images:
        raise RewardError(f"no image of the round has a finite score of {', '.join(part.name for part in parts)}")
    return Settled(
        raw_PN[:, images], images, raw_PN.shape[1], {key: count[key.removeprefix("rewards_")] for key in metrics}
    )


def clamped(scores_N: torch.Tensor, part: WeightedPart) -> torch.Tensor:
    """Infinite ones become the largest or smallest finite one of the round, NaN the one that counts least: N."""
    finite = scores_N[scores_N.isfinite()]
    if not len(finite):
        raise RewardError(f"reward {part.name} gave no finite score in the round, so that none can be clamped")
    smallest, largest = float(finite.min()), float(finite.max())
    worst = smallest if part.weight >= 0 else largest
    return scores_N.nan_to_num(nan=worst, posinf=largest, neginf=smallest)
