"""AlignProp: how deep each image's gradient goes, and that it is the gradient of exactly that."""

from collections import Counter
from typing import Any

import pytest

from memdiff.methods.alignprop import AlignProp
from memdiff.methods.config import AlignPropConfig
from memdiff.runtime.ranks import Ranks
from tests.helpers.one_graph import CPU, distance, gradient_of, make, round_of, truth_of
from tests.helpers.tiny import tiny_policy


def alignprop(**config: Any) -> AlignPropConfig:
    return AlignPropConfig.model_validate({"kind": "alignprop", **config})


def depths(steps: int, rounds: int, images: int, **config: Any) -> list[int]:
    policy = tiny_policy(steps=2)
    method = make(AlignProp, alignprop(**config), policy)
    return [
        method.depth(seed=7, round_number=round_number, image=image, steps=steps)
        for round_number in range(rounds)
        for image in range(images)
    ]


def test_k_is_uniform_from_one_to_all() -> None:
    """10,000 draws over 1..50: chi-squared with 49 degrees of freedom has mean 49, std 9.9; held to five of those."""
    counts = Counter(depths(50, 100, 100))
    assert set(counts) == set(range(1, 51))
    chi_squared = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_squared < 49 + 5 * 9.9


def test_k_of_an_image_is_its_own() -> None:
    """It differs between images and rounds, not between runs; neighbours are uncorrelated (|r| < 5 / sqrt(2,000))."""
    first = depths(50, 20, 100)
    assert first == depths(50, 20, 100) and len(set(first[:100])) > 30 and first[:100] != first[100:200]
    a, b = first[:-1], first[1:]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    scale = (sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)) ** 0.5
    assert abs(covariance / scale) < 0.11


def test_options_of_the_draw() -> None:
    assert set(depths(50, 3, 5, truncation="fixed", last_steps=10)) == {10}
    assert set(depths(50, 3, 5, truncation="fixed")) == {50}
    assert set(depths(50, 50, 50, last_steps=4)) == {1, 2, 3, 4}
    shared = depths(50, 20, 5, one_draw_per_batch=True)
    assert all(len(set(shared[start : start + 5])) == 1 for start in range(0, 100, 5)) and len(set(shared)) > 5


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_draw_what_one_rank_draws(world_size: int) -> None:
    policy = tiny_policy(steps=9)
    method = make(AlignProp, alignprop(), policy)
    alone = list(method.collect(policy, round_of(policy, 7)).starts_n)
    blocks = [
        method.collect(policy, round_of(policy, 7, ranks=Ranks(rank, world_size, CPU))).starts_n
        for rank in range(world_size)
    ]
    assert [start for block in blocks for start in block] == alone


@pytest.mark.parametrize("config", [{}, {"one_draw_per_batch": True}, {"truncation": "fixed", "last_steps": 3}])
@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_gradient_is_that_of_one_graph(config: dict[str, Any], micro_batch: int) -> None:
    """Images of different depth in one micro-batch: <= 1e-5 relative to one graph cut at each image's own step."""
    policy = tiny_policy(steps=8, clip=True)
    this_round = round_of(policy, 7)
    method = make(AlignProp, alignprop(**config), policy, micro_batch=micro_batch, kept_steps=2)
    starts = method.collect(policy, this_round).starts_n
    got, metrics = gradient_of(method, policy, this_round)
    assert distance(got, truth_of(policy, this_round, starts)) <= 1e-5
    assert metrics["last_steps_mean"] == pytest.approx(sum(8 - start for start in starts) / 7)


def test_grouping_by_depth_sweeps_little_for_nothing() -> None:
    """Image-steps back are those that are wanted."""
    policy = tiny_policy(steps=8)
    method, advances = make(AlignProp, alignprop(), policy, micro_batch=2), []
    this_round = round_of(policy, 6)
    this_round.advance = advances.append
    gradient_of(method, policy, this_round)
    starts = method.collect(policy, this_round).starts_n
    assert sum(advances) == 6 * 8 + sum(8 - start for start in starts)
