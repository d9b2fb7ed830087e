"""Running normalisation of a reward part: by hand, over any split into rounds, bit for bit through a checkpoint."""

import json
import math

import pytest
import torch

from memdiff.rewards.normalise import EPSILON, Running, from_json, normalise, to_json
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward

CPU = torch.device("cpu")


class Brightness:
    """The mean of the pixels."""

    differentiable = True
    networks = ()

    def __call__(self, images_BCHW, prompts):
        return images_BCHW.mean(dim=(1, 2, 3))


def weighted(*parts: WeightedPart) -> WeightedReward:
    return WeightedReward(parts, device=CPU)


def part(name: str, **settings) -> WeightedPart:
    return WeightedPart(name, Brightness(), **settings)


def test_two_rounds_by_hand() -> None:
    """1, 3 -> mean 2, squares 1 + 1 = 2, std 1. Then 5, 7, 9: all five have mean 5 and deviations -4, -2, 0, 2, 4, so
    squares 40 and std sqrt 8; 9 normalises to 4 / sqrt 8."""
    one = Running().with_scores(torch.tensor([1.0, 3.0]))
    assert (one.count, one.mean, one.squares, one.std) == (2, 2.0, 2.0, 1.0)
    two = one.with_scores(torch.tensor([5.0, 7.0, 9.0]))
    assert (two.count, two.mean, two.squares) == (5, 5.0, 40.0) and two.std == math.sqrt(8)
    assert normalise(torch.tensor([9.0, 5.0]), two).tolist() == pytest.approx([4 / math.sqrt(8), 0.0], rel=1e-6)


def test_equal_scores_give_zero_and_no_scores_change_nothing() -> None:
    """std 0 is kept from the denominator by an epsilon of 1e-6; an empty round is no round."""
    same = Running().with_scores(torch.full((7,), 0.1))
    assert same.std == 0 and normalise(torch.full((3,), 0.1), same).tolist() == [0, 0, 0]
    assert normalise(torch.tensor([1.1]), Running(1, 0.1, 0.0)).item() == pytest.approx(1 / EPSILON, rel=1e-5)
    assert same.with_scores(torch.empty(0)) == same and Running().std == 0


def test_the_split_into_rounds_does_not_matter(generator: torch.Generator) -> None:
    """1,000 scores far from zero (PickScore's 22 +- 0.5) in one round, in tens, one by one: mean and std as torch's
    two-pass fp64 ones, to 1e-12; and in any order within a round bit for bit the same."""
    scores_N = 22 + 0.5 * torch.randn(1000, generator=generator)
    for size in (1000, 10, 1):
        running = Running()
        for round_n in scores_N.split(size):
            running = running.with_scores(round_n)
        assert running.mean == pytest.approx(float(scores_N.double().mean()), rel=1e-12)
        assert running.std == pytest.approx(float(scores_N.double().std(correction=0)), rel=1e-12)
    assert Running().with_scores(scores_N.flip(0)) == Running().with_scores(scores_N)


def test_a_checkpoint_keeps_every_bit(generator: torch.Generator) -> None:
    """Through state.json and back: equal, and so is everything that follows."""
    running = Running().with_scores(torch.randn(100, generator=generator) / 3)
    again = from_json(json.loads(json.dumps(to_json({"a": running}))))
    more = torch.randn(100, generator=generator)
    assert again == {"a": running} and again["a"].with_scores(more) == running.with_scores(more)


def test_combine_is_pure_and_normalises_only_what_asks_for_it() -> None:
    """Scores 1, 3 twice: plain with weight 2 gives 2, 6; running (mean 2, std 1) with weight 10 gives -10, 10. Calling
    it changes no statistics; `observe` does."""
    reward = weighted(part("plain", weight=2.0), part("running", weight=10.0, normalised=True))
    raw_PN = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    assert reward.statistics == {"running": Running()}
    statistics = reward.statistics_of(raw_PN)
    for _ in range(2):
        assert reward.combine(raw_PN, statistics).tolist() == pytest.approx([-8, 16], rel=1e-5)
    assert reward.statistics == {"running": Running()}
    reward.observe(raw_PN)
    assert reward.statistics == statistics


def test_both_parts_pull_alike_whatever_their_units(generator: torch.Generator) -> None:
    """A part in thousandths and one in thousands: normalised, each has mean 0 and std 1 in the sum."""
    reward = weighted(part("small", normalised=True), part("large", normalised=True))
    raw_PN = torch.randn(2, 500, generator=generator) * torch.tensor([[1e-3], [1e3]]) + 7
    reward.observe(raw_PN)
    for row in range(2):
        only = raw_PN.clone()
        only[1 - row] = raw_PN[1 - row].mean()
        total_N = reward.combine(only, reward.statistics)
        assert float(total_N.std(correction=0)) == pytest.approx(1, rel=5e-3)


def test_the_value_of_a_share_is_its_distance_to_the_target() -> None:
    """Shares 0, 1/4, 1/2, 1 with target 1/2 and weight 2: -2 (share - 1/2)^2 = -1/2, -1/8, 0, -1/2. The mean of
    `combine`, which is the slope, would rank 1/4 above 1/2."""
    reward = weighted(part("share", weight=2.0, is_share=True, target_share=0.5))
    values = []
    for yes in (0, 1, 2, 4):
        raw_PN = torch.tensor([[1.0] * yes + [0.0] * (4 - yes)])
        values.append(reward.value(raw_PN, {}))
    assert values == [-0.5, -0.125, 0.0, -0.5]
    plain = weighted(part("a", weight=2.0), part("b", weight=-1.0))
    raw_PN = torch.tensor([[1.0, 3.0], [5.0, 6.0]])
    assert plain.value(raw_PN, {}) == pytest.approx(float(plain.combine(raw_PN, {}).mean())) == 2 * 2 - 5.5
