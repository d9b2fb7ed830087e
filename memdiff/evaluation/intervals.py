"""Means with their 95 % intervals, shares with Wilson's, and differences of pairs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from memdiff.digits.judge import WILSON_Z as Z  # two-sided 95 %
from memdiff.digits.judge import wilson_interval


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (None: it has none) over `count` images."""

    value: float
    low: float | None
    high: float | None
    count: int


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean over images: value +- z s / sqrt(N), s with divisor N - 1; Wilson's interval where all are 0 or 1.

    Images are taken as independent. One image has no interval, and what is not finite has none either.
    """
    count, value = len(values), statistics.fmean(values)
    if count < 2 or not math.isfinite(value):
        return Estimate(value, None, None, count)
    if set(values) <= {0.0, 1.0}:
        return Estimate(value, *wilson_interval(round(math.fsum(values)), count), count)
    half = Z * statistics.stdev(values) / math.sqrt(count)
    return Estimate(value, value - half, value + half, count)


def difference_of(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """The mean of values_i - others_i, for images of the same noise and prompt: what the pairs share drops out."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    count, value = len(differences), statistics.fmean(differences)
    if count < 2 or not math.isfinite(value):
        return Estimate(value, None, None, count)
    half = Z * statistics.stdev(differences) / math.sqrt(count)
    return Estimate(value, value - half, value + half, count)
