"""The figures themselves: intervals, FID, KID and diversity against hand computations.

Shapes: N, M images, F features.
"""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from memdiff.evaluation.distances import (
    frechet_inception_distance,
    kernel_inception_distance,
    mean_pairwise_distance,
)
from memdiff.evaluation.intervals import Estimate, difference_of, mean_of
from memdiff.evaluation.show import cells_of


def features(count: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated features: no covariance is diagonal, and no two commute."""
    generator = torch.Generator().manual_seed(seed)
    mixing_FF = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing_FF + shift


def test_intervals_by_hand() -> None:
    """1, 2, 3, 6: mean 3, s^2 = (4 + 1 + 0 + 9) / 3 = 14 / 3, half = 1.959964 sqrt(14 / 12) = 2.117006."""
    estimate = mean_of([1.0, 2.0, 3.0, 6.0])
    assert (estimate.value, estimate.count) == (3.0, 4) and estimate.low is not None and estimate.high is not None
    half = 1.959963984540054 * math.sqrt(14 / 12)
    assert estimate.low == pytest.approx(3 - half) and estimate.high == pytest.approx(3 + half)
    assert half == pytest.approx(2.117, abs=5e-4)


def test_shares_have_wilsons_interval() -> None:
    """3 of 10, z = 1.96: centre (0.3 + 0.1921) / 1.3841 = 0.3555, half 0.2475 (Wilson 1927): 0.1078 to 0.6032."""
    estimate = mean_of([1.0] * 3 + [0.0] * 7)
    assert estimate.value == pytest.approx(0.3)
    assert (estimate.low, estimate.high) == (pytest.approx(0.1078, abs=1e-4), pytest.approx(0.6032, abs=1e-4))
    none = mean_of([0.0] * 4)
    assert none.low == 0.0 and none.high is not None and none.high > 0.4


def test_pairs_take_away_what_they_share() -> None:
    """Differences 1, 1, 4: mean 2, s^2 = 3, half = z; the two means alone would be far less sure."""
    estimate = difference_of([101.0, 1.0, -46.0], [100.0, 0.0, -50.0])
    assert estimate.value == pytest.approx(2.0) and estimate.high == pytest.approx(2.0 + 1.959963984540054)


def test_figures_without_an_interval() -> None:
    one, broken = mean_of([2.0]), mean_of([1.0, math.nan])
    assert (one.value, one.low, one.high) == (2.0, None, None)
    assert math.isnan(broken.value) and broken.low is None


def fid_by_hand(x_NF: np.ndarray, y_MF: np.ndarray) -> float:
    """|m - n|^2 + tr A + tr B - 2 tr (A^(1/2) B A^(1/2))^(1/2): symmetric, so that its eigenvalues are real."""
    a_FF, b_FF = np.cov(x_NF, rowvar=False), np.cov(y_MF, rowvar=False)
    values_F, vectors_FF = np.linalg.eigh(a_FF)
    root_FF = vectors_FF @ np.diag(np.sqrt(values_F.clip(0))) @ vectors_FF.T
    cross = np.sqrt(np.linalg.eigvalsh(root_FF @ b_FF @ root_FF).clip(0)).sum()
    return float(((x_NF.mean(0) - y_MF.mean(0)) ** 2).sum() + np.trace(a_FF) + np.trace(b_FF) - 2 * cross)


@pytest.mark.parametrize(("count", "real"), [(40, 60), (5, 60)], ids=["full rank", "fewer images than features"])
def test_fid_by_hand(count: int, real: int) -> None:
    """torchmetrics' figure is that of an eigendecomposition in numpy; singular covariances too."""
    x_NF, y_MF = features(count, 8, 0), features(real, 8, 1, shift=0.5)
    by_hand = fid_by_hand(x_NF.double().numpy(), y_MF.double().numpy())
    assert frechet_inception_distance(x_NF, y_MF) == pytest.approx(by_hand, rel=1e-5)
    assert frechet_inception_distance(y_MF, y_MF) == pytest.approx(0.0, abs=1e-4)


def kid_by_hand(x_NF: torch.Tensor, y_NF: torch.Tensor) -> float:
    """The unbiased squared MMD with k(x, y) = (x . y / F + 1)^3, term by term (Binkowski et al. 2018, eq. 4)."""
    count, width = x_NF.shape

    def kernel(x_F: torch.Tensor, y_F: torch.Tensor) -> float:
        return (float(x_F @ y_F) / width + 1) ** 3

    pairs = list(combinations(range(count), 2))
    within = sum(kernel(x_NF[i], x_NF[j]) + kernel(y_NF[i], y_NF[j]) for i, j in pairs) / len(pairs)
    between = sum(kernel(x_F, y_F) for x_F in x_NF for y_F in y_NF) / count**2
    return within - 2 * between


def test_kid_by_hand() -> None:
    """Where both sides are one subset there is nothing to choose: the term by term figure, and no deviation."""
    x_NF, y_NF = features(7, 4, 0), features(7, 4, 1)
    value, deviation = kernel_inception_distance(x_NF, y_NF, seed=0)
    assert value == pytest.approx(kid_by_hand(x_NF.double(), y_NF.double()), rel=1e-9) and deviation == 0


def test_kid_subsets_follow_from_the_seed_alone() -> None:
    """Where a side has more images subsets are drawn: the seed decides which, and torch's generator is left alone."""
    x_NF, y_MF = features(7, 4, 0), features(30, 4, 1)
    before = torch.random.get_rng_state()
    first, again, other = (kernel_inception_distance(x_NF, y_MF, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == again and first[0] != other[0] and first[1] > 0


def test_diversity_by_hand() -> None:
    """Points 0, 3, 4i, in the plane: distances 3, 4, 5, mean 4. Without one of them 5, 4 or 3 is left, so that the
    jackknife's variance is 2/3 (1 + 0 + 1) = 4/3."""
    x_NF = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    estimate = mean_pairwise_distance(x_NF, "euclidean")
    assert estimate.value == pytest.approx(4.0) and estimate.high == pytest.approx(
        4 + 1.959963984540054 * (4 / 3) ** 0.5
    )
    orthogonal = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # cosines 0, 1 / sqrt 2, 1 / sqrt 2
    assert mean_pairwise_distance(orthogonal, "cosine").value == pytest.approx(1 - math.sqrt(2) / 3)


def test_diversity_of_many_images_is_that_of_all_pairs() -> None:
    x_NF = features(600, 3, 0)
    all_pairs = torch.pdist(x_NF.double()).mean()
    assert mean_pairwise_distance(x_NF, "euclidean").value == pytest.approx(float(all_pairs), rel=1e-9)
    assert mean_pairwise_distance(torch.ones(5, 3), "cosine").value == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(mean_pairwise_distance(torch.ones(1, 3), "cosine").value)


def test_a_row_has_one_number_of_decimals() -> None:
    """Half intervals of 0.041 and 0.2: two digits of the narrower are three decimals. Without an interval four digits
    of the largest: 12.34. What is not finite, or not there, is n/a."""
    narrow, wide = Estimate(0.5934, 0.5524, 0.6344, 400), Estimate(1.25, 1.05, 1.45, 4)
    assert cells_of([narrow, wide]) == ["0.593 [0.552, 0.634]", "1.250 [1.050, 1.450]"]
    assert cells_of([Estimate(0.012, -0.03, 0.054, 9)], signed=True) == ["+0.012 [-0.030, +0.054]"]
    assert cells_of([Estimate(1.234, None, None, 9), None, Estimate(12.346, None, None, 9)]) == ["1.23", "n/a", "12.35"]
    assert cells_of([Estimate(math.nan, None, None, 9), Estimate(0.0, None, None, 9)]) == ["n/a", "0"]
    assert cells_of([Estimate(16.0, 16.0, 16.0, 2)]) == ["16.00 [16.00, 16.00]"]
