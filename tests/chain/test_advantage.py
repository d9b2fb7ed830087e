"""Advantages, against numbers worked out by hand and expectations summed over every outcome.

Shapes: N images of a round.
"""

import itertools
import math
from typing import get_args

import pytest
import torch

from memdiff.chain.advantage import AdvantageKind, advantages, center, leave_one_out, whiten

KINDS = get_args(AdvantageKind)


def rewards(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_whitening_by_hand():
    """r = 1, 2, 3, 6: mean 3, squared deviations 4, 1, 0, 9, population variance 14 / 4 (a sample's is 14 / 3).

    So the advantages are -2, -1, 0, 3 over sqrt(3.5).
    """
    expected = rewards(-2, -1, 0, 3) / math.sqrt(3.5)
    torch.testing.assert_close(whiten(rewards(1, 2, 3, 6), epsilon=1e-6), expected, rtol=1e-6, atol=1e-6)
    result = advantages(rewards(1, 2, 3, 6), kind="whiten")
    assert result.std(correction=0).item() == pytest.approx(1, abs=1e-6) and result.dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-3, 1.0, 1e8, 1e30])
def test_whitening_has_no_scale(scale: float):
    """Rewards times anything: the same advantages, so that `kl_weight` beside them means the same."""
    r = rewards(1, 2, 3, 6)
    torch.testing.assert_close(whiten(r * scale, epsilon=1e-6), whiten(r, epsilon=1e-6), rtol=1e-5, atol=1e-6)


def test_a_spread_far_below_the_rewards_size_is_none():
    """A score of 1000 in fp32 is known to 6e-5: what differs there is rounding, and gives zero. 3e-6 of it counts."""
    assert whiten(rewards(1000, 1000 + 1e-4, 1000, 1000), epsilon=1e-6).tolist() == [0.0] * 4
    counted = whiten(torch.tensor([1.0, 1.0 + 6e-6, 1.0, 1.0 + 6e-6]), epsilon=1e-6)
    torch.testing.assert_close(counted, rewards(-1, 1, -1, 1), rtol=0.05, atol=0)
    assert whiten(rewards(1, 2), epsilon=0.4).tolist() == [0, 0]  # std 0.5 of a largest of 2
    assert whiten(rewards(1, 2), epsilon=0.2).tolist() == [-1, 1]


def test_centring_by_hand():
    """r = 1, 2, 3, 6 less their mean of 3; the scale stays."""
    assert center(rewards(1, 2, 3, 6)).tolist() == [-2, -1, 0, 3]
    assert advantages(rewards(10, 20, 30, 60), kind="center").tolist() == [-20, -10, 0, 30]


def test_leave_one_out_by_hand():
    """r = 1, 2, 3, 6: the others' means are 11/3, 10/3, 3 and 2. A single image has no others: zero."""
    expected = rewards(1 - 11 / 3, 2 - 10 / 3, 0, 4)
    torch.testing.assert_close(leave_one_out(rewards(1, 2, 3, 6)), expected, rtol=1e-6, atol=1e-6)
    assert leave_one_out(rewards(5)).tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e6 + 0.1, 1e-30, 3e38, 0.0])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 200])
def test_equal_rewards_give_exactly_zero(kind: AdvantageKind, value: float, count: int):
    """Whatever the value: the mean of three times 0.1 is not 0.1 in fp32, and whitening would make that into +-1."""
    assert advantages(torch.full((count,), value), kind=kind).tolist() == [0.0] * count


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_does_not_matter(kind: AdvantageKind):
    """r + 4096 gives what r gives, since both are exact in fp32; and the advantages add up to zero."""
    r = rewards(0.25, 0.5, 0.125, 1, 0)
    torch.testing.assert_close(advantages(r + 4096, kind=kind), advantages(r, kind=kind), rtol=1e-6, atol=1e-6)
    assert advantages(r, kind=kind).sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rewards_are_worked_on_in_fp32(kind: AdvantageKind):
    """Squares of 300 overflow fp16: the result is that of the same numbers in fp32."""
    r = rewards(-300, 300, 100, 7)
    half = advantages(r.half(), kind=kind)
    assert half.dtype == torch.float32 and torch.equal(half, advantages(r, kind=kind))


def expectation(p: float, count: int, kind: AdvantageKind | None) -> float:
    """E[1/N sum_i A_i d log p(x_i) / d theta] of x_i ~ Bernoulli(p), p = sigmoid(theta), reward 3 x - 1, over all 2^N
    outcomes. d log p / d theta = x - p. kind None: the plain rewards."""
    total = 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=count):
        x = torch.tensor(outcome)
        probability = p ** x.sum().item() * (1 - p) ** (count - x.sum().item())
        weight = 3 * x - 1 if kind is None else advantages(3 * x - 1, kind=kind)
        total += probability * (weight * (x - p)).mean().item()
    return total


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_leave_one_out_is_unbiased(p: float, count: int):
    """J = E[3 x - 1] = 3 p - 1, so dJ/dtheta = 3 p (1 - p): leave-one-out gives exactly that, as the plain rewards do.

    `center` subtracts a mean that knows r_i and gives (N - 1) / N of it.
    """
    truth = 3 * p * (1 - p)
    assert expectation(p, count, None) == pytest.approx(truth, abs=1e-6)
    assert expectation(p, count, "leave_one_out") == pytest.approx(truth, abs=1e-6)
    assert expectation(p, count, "center") == pytest.approx(truth * (count - 1) / count, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_treated_each_alone(kind: AdvantageKind):
    """Images of one prompt, wherever they stand among the others, get what they would get in a round of their own."""
    r, groups = rewards(1, 10, 2, 20, 3, 10, 7), [4, 0, 4, 0, 4, 0, 9]
    together = advantages(r, kind=kind, groups=groups)
    for group in (4, 0, 9):
        members = [image for image, other in enumerate(groups) if other == group]
        assert torch.equal(together[members], advantages(r[members], kind=kind))
    assert together[6] == 0  # alone with its prompt


def test_one_group_is_no_group():
    """All images of one prompt: the same numbers as without groups."""
    r = rewards(1, 2, 3, 6)
    assert torch.equal(advantages(r, kind="whiten", groups=[5] * 4), advantages(r, kind="whiten"))


def test_the_clip_is_last_and_on_both_sides():
    """center gives -20, -10, 0, 30, clipped at 15: -15, -10, 0, 15. Groups are whitened, then clipped."""
    r = rewards(10, 20, 30, 60)
    assert advantages(r, kind="center", clip=15).tolist() == [-15, -10, 0, 15]
    clipped = advantages(r, kind="whiten", clip=1, groups=[0, 0, 1, 1])
    torch.testing.assert_close(clipped, rewards(-1, 1, -1, 1), rtol=0, atol=1e-5)
    many = torch.cat([torch.zeros(99), torch.ones(1)])  # one success of a hundred stands at sqrt(99) = 9.95
    assert advantages(many, kind="whiten")[-1].item() == pytest.approx(math.sqrt(99), abs=1e-3)
    assert advantages(many, kind="whiten", clip=5)[-1] == 5
