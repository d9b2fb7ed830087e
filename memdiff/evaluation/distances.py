"""Distances between sets of features: FID and KID through torchmetrics, and how far a set's images lie apart.

Shapes: N, M images, F features.
"""

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from memdiff.evaluation.intervals import Estimate, Z

KID_SUBSETS = 100  # torchmetrics' and torch-fidelity's own
KID_SUBSET_SIZE = 1000

Metric = Literal["cosine", "euclidean"]


class Ready(nn.Module):
    """Features that are there already, in the place of a network: FID, KID and diversity share one pass over images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features_NF: Tensor) -> Tensor:
        """The features themselves, in double precision: squares of sums lose digits."""
        return features_NF.double()


def frechet_inception_distance(features_NF: Tensor, real_MF: Tensor) -> float:
    """FID (Heusel et al. 2017), covariances with divisor N - 1. At least two images on each side."""
    with _quiet():
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature=Ready(features_NF.shape[1]))
        metric.update(real_MF, real=True)
        metric.update(features_NF, real=False)
        return float(metric.compute())


def kernel_inception_distance(features_NF: Tensor, real_MF: Tensor, seed: int) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): squared MMD, kernel (x . y / F + 1)^3, unbiased. Mean and std over random subsets.

    100 subsets of 1,000 images, or of all where a side has fewer. They overlap: the std says how much a subset's choice
    moves the figure, and is 0 where there is nothing to choose. torch's own generator is left as it was.
    """
    size = min(KID_SUBSET_SIZE, len(features_NF), len(real_MF))
    subsets = 1 if size == len(features_NF) == len(real_MF) else KID_SUBSETS
    with _quiet(), torch.random.fork_rng(devices=[]):
        from torchmetrics.image.kid import KernelInceptionDistance

        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=Ready(features_NF.shape[1]), subsets=subsets, subset_size=size)
        metric.update(real_MF, real=True)
        metric.update(features_NF, real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def mean_pairwise_distance(features_NF: Tensor, metric: Metric) -> Estimate:
    """The mean distance of two different images, with the jackknife's interval over images (Efron 1982).

    cosine: 1 - cosine. Leaving image i out changes the mean by its own mean distance to the others, so that the
    jackknife needs no second pass: s^2 = (N - 1) / N sum_i (m_(i) - mean)^2.
    """
    count = len(features_NF)
    if count < 2:
        return Estimate(math.nan, None, None, count)
    x_NF = features_NF.double() if metric == "euclidean" else normalize(features_NF.double(), dim=1)
    row: Callable[[Tensor], Tensor] = {
        "euclidean": lambda part: torch.cdist(part, x_NF, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1),
        "cosine": lambda part: (1.0 - part @ x_NF.T).sum(dim=1),
    }[metric]
    sums_N = torch.cat([row(part) for part in x_NF.split(256)])
    if metric == "cosine":
        sums_N = sums_N - (1.0 - (x_NF * x_NF).sum(dim=1))  # of an image with itself: rounding, or 1 where all is zero
    total = float(sums_N.sum())
    mean = total / (count * (count - 1))
    if count < 3:
        return Estimate(mean, None, None, count)
    left_out_N = (total - 2.0 * sums_N) / ((count - 1) * (count - 2))
    half = Z * math.sqrt((count - 1) / count * float(((left_out_N - left_out_N.mean()) ** 2).sum()))
    return Estimate(mean, mean - half, mean + half, count)


def _quiet() -> warnings.catch_warnings:
    """Without torchmetrics' advice on memory and its imports' deprecations."""
    return warnings.catch_warnings(action="ignore")
