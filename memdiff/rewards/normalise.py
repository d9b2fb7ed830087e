"""Running mean and standard deviation of a reward over all images of a run.

Two sets of n and m scores with means a, b and sums of squared deviations A, B are, together (Chan, Golub, LeVeque 1979,
which for m = 1 is Welford 1962):

    mean = a + (b - a) m / (n + m)        sum of squared deviations = A + B + (b - a)^2 n m / (n + m)

Shapes: N images of a round, over all ranks.
"""

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Self

import torch

EPSILON = 1e-6  # added to the std: scores that were always equal give zero


@dataclass(frozen=True)
class Running:
    """Count, mean and sum of squared deviations of all scores so far; fp64 on the host, so equal on every rank."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_scores(self, scores_N: torch.Tensor) -> Self:
        """These and `scores_N`, which may be empty. The order within a round does not matter: sums are exact."""
        values = scores_N.double().tolist()
        if not values:
            return self
        count = self.count + len(values)
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        shift = mean - self.mean
        return type(self)(
            count,
            self.mean + shift * len(values) / count,
            self.squares + squares + shift**2 * self.count * len(values) / count,
        )

    @property
    def std(self) -> float:
        """Population standard deviation (ddof 0); 0 where there are no scores."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def normalise(scores_N: torch.Tensor, running: Running) -> torch.Tensor:
    """(score - running mean) / (running std + epsilon): N fp32."""
    return ((scores_N.double() - running.mean) / (running.std + EPSILON)).float()


def to_json(statistics: Mapping[str, Running]) -> dict[str, list[float]]:
    """Plain lists by name; JSON keeps every bit of them."""
    return {name: list(astuple(running)) for name, running in statistics.items()}


def from_json(lists: Mapping[str, list[float]]) -> dict[str, Running]:
    """What `to_json` was given."""
    return {name: Running(int(count), mean, squares) for name, (count, mean, squares) in lists.items()}
