"""The weighted sum of a recipe's reward parts, every part's own score kept.

Shapes: P parts, B images of one call, N images over all ranks, D of an embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from memdiff.errors import RewardError
from memdiff.rewards.backbones import of_one_backbone
from memdiff.rewards.normalise import EPSILON, Running, normalise
from memdiff.rewards.reward import Reward
from memdiff.rewards.score import score_together
from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import place

NonFinite = Literal["error", "drop", "clamp"]
Features = Callable[[torch.Tensor], torch.Tensor]  # images_BCHW in [0, 1] -> e_BD


@dataclass(frozen=True)
class WeightedPart:
    """One part. `target_share` turns yes/no scores into a pull towards that share of yes.

    `normalised` parts enter the sum in units of their running std; `features` are what the diversity of a batch is
    measured in, where the part has any.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    chunk: int = 32
    is_share: bool = False
    target_share: float | None = None
    normalised: bool = False
    features: Features | None = None
    non_finite: NonFinite = "error"


Statistics = Mapping[str, Running]  # by the name of each normalised part


class WeightedReward:
    """Scores on each rank, sums over what all ranks scored: a part may depend on the whole round.

    `device` is where the parts run; images are brought there and the scores back. `statistics` are those of the scores
    seen so far, changed by `observe` alone.
    """

    def __init__(self, parts: Sequence[WeightedPart], *, device: torch.device) -> None:
        self.parts, self.device = tuple(parts), device
        self.statistics: Statistics = {part.name: Running() for part in parts if part.normalised}
        self._groups = of_one_backbone([part.reward for part in parts], [part.chunk for part in parts])

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """Of all parts, each once: parts may share one."""
        return tuple(dict.fromkeys(network for part in self.parts for network in part.reward.networks))

    @property
    def groups(self) -> Sequence[tuple[Sequence[int], Sequence[WeightedPart]]]:
        """Parts that one forward scores, with their places among all: most are by themselves."""
        return [(numbers, [self.parts[number] for number in numbers]) for numbers in self._groups]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts, in order."""
        return tuple(part.name for part in self.parts)

    def raw(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Every part's own scores: P B fp32, on the images' device. RewardError where one is not finite."""
        if not self.parts:
            return images_BCHW.new_zeros(0, len(images_BCHW))
        with memory_tag("reward"):
            images = place(images_BCHW, self.device)
            rows: dict[int, torch.Tensor] = {}
            for numbers, parts in self.groups:
                rows |= dict(zip(numbers, score_parts(parts, images, prompts, chunk=parts[0].chunk), strict=True))
            return place(in_order(rows), images_BCHW.device)

    def observe(self, raw_PN: torch.Tensor) -> None:
        """Takes a round's raw scores of all ranks into the statistics."""
        scores = dict(zip(self.names, raw_PN, strict=True))
        self.statistics = {name: seen.with_scores(scores[name]) for name, seen in self.statistics.items()}

    def statistics_of(self, raw_PN: torch.Tensor) -> Statistics:
        """Those of these scores alone."""
        scores = dict(zip(self.names, raw_PN, strict=True))
        return {name: Running().with_scores(scores[name]) for name in self.statistics}

    def combine(self, raw_PN: torch.Tensor, statistics: Statistics) -> torch.Tensor:
        """The total reward of a round's images from their raw scores over all ranks: N fp32. No state is read."""
        total_N = raw_PN.new_zeros(raw_PN.shape[1])
        for part, scores_N in zip(self.parts, raw_PN, strict=True):
            shaped_N = scores_N if part.target_share is None else towards_share(scores_N, part.target_share)
            if part.normalised:
                shaped_N = normalise(scores_N, statistics[part.name])
            total_N = total_N + part.weight * shaped_N
        return total_N

    def slopes(self, shares: Sequence[float] | None = None) -> Sequence[float]:
        """d total / d raw score of each part, by the statistics of the scores seen so far: P numbers.

        A share part has one at the shares of yes of a round, one entry a part: its scores are yes or no, so that no
        gradient leads to them. A normalised part without scores counts as one with std 1.
        """
        part_slopes = []
        for number, part in enumerate(self.parts):
            seen = self.statistics.get(part.name, Running())
            slope = part.weight / (seen.std + EPSILON) if seen.count else part.weight
            if part.target_share is not None:
                assert shares is not None, "share parts have no gradient"
                slope = part.weight * 2 * (part.target_share - shares[number])
            part_slopes.append(slope)
        return part_slopes

    def value(self, raw_PN: torch.Tensor, statistics: Statistics) -> float:
        """What training raises, for a set of images: the mean total, a share part counting as -(share - target)^2.

        The mean of `combine` would not do for a share part: it is a slope, and 0 both at the target and at no yes.
        """
        value = 0.0
        for part, scores_N in zip(self.parts, raw_PN, strict=True):
            if part.target_share is not None:
                value -= part.weight * (float(scores_N.mean()) - part.target_share) ** 2
            else:
                shaped_N = normalise(scores_N, statistics[part.name]) if part.normalised else scores_N
                value += part.weight * float(shaped_N.mean())
        return value

    def move(self, device: torch.device) -> None:
        """Takes the parts' networks to `device`; they are brought back before they score."""
        with memory_tag("reward"):
            for network in self.networks:
                place(network, device)


def score_parts(
    parts: Sequence[WeightedPart], images_BCHW: torch.Tensor, prompts: Sequence[str], *, chunk: int
) -> torch.Tensor:
    """The checked scores of parts that one forward scores, in chunks: p B for p of them."""
    rewards, names = [part.reward for part in parts], [part.name for part in parts]
    return score_together(rewards, images_BCHW, prompts, chunk=chunk, names=names)


def in_order(rows: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The rows of all parts by their places: P B."""
    return torch.stack([rows[number] for number in range(len(rows))])


def towards_share(yes_N: torch.Tensor, target: float) -> torch.Tensor:
    """2 (target - share) yes_i: N. Its policy gradient is that of -(share - target)^2, since d share = mean of d yes.

    It fades as the share nears the target, so pair it with `advantage: center` or `leave_one_out`: whitening would blow
    it up again.
    """
    return 2 * (target - yes_N.mean()) * yes_N


def refuse_non_finite(
    raw_PN: torch.Tensor,
    names: Sequence[str],
    prompts: Sequence[str] | None = None,
    images: Sequence[int] | None = None,
) -> None:
    """RewardError naming the first part and image whose score is NaN or infinite.

    `images` are the columns' numbers in the round; None: 0, 1, ...
    """
    broken = (~raw_PN.isfinite()).nonzero()
    if len(broken):
        part, column = (int(index) for index in broken[0])
        prompt = f", prompt {prompts[column]!r}" if prompts and prompts[column] else ""
        image = column if images is None else images[column]
        raise RewardError(
            f"reward {names[part]} gave {float(raw_PN[part, column])} for image {image} of the round{prompt}; "
            f"{len(broken)} of {raw_PN.numel()} scores are not finite"
        )
