"""REINFORCE in half precision where a step's sigma is small: a shortcut's last step has a std of 0.001.

The truth is worked out apart from the package's densities. The policy that samples has the mean m(x_t) that its own
network computes, rounded as it is, and x_s = m + sigma z. So grad log p(x_s | x_t) = J^T z / sigma, J = dm/dtheta, with
z as it was drawn; what is compared with fp64 is J, at equal weights and equal x_t. Not (x_s - m64) / sigma^2: m64 is
another policy's mean, and the stored x_s is rounded.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from memdiff.methods.config import ReinforceConfig
from memdiff.methods.experience import Round
from memdiff.methods.reinforce import Reinforce
from memdiff.methods.reinforce_one_pass import ReinforceOnePass
from memdiff.models.config import AdapterConfig
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces
from tests.gradients.test_reinforce import gradient, round_of
from tests.gradients.test_sweep import off_the_start
from tests.helpers import half_precision
from tests.helpers.tiny import CPU, tiny_policy
from tests.workers.engine_parity import Brightness, knobs

IMAGES, STEPS = 4, 8
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def shortcut(dtype: torch.dtype) -> Any:
    policy = tiny_policy(
        steps=STEPS, sub_schedule="quadratic", final_std=0.001, dtype=dtype, adapter=AdapterConfig(rank=2)
    )
    off_the_start(policy)
    return policy


def by_hand(policy: Any, advantages: torch.Tensor, states: Sequence[torch.Tensor], this_round: Round) -> torch.Tensor:
    """-1/N sum_i A_i sum_k J^T z_ik / sigma_k / D, D = C H W (log-probs are means), by autograd of the means alone."""
    weights = list(policy.trainable().values())
    total = torch.zeros(sum(w.numel() for w in weights), dtype=torch.float64)
    for step, sigma in enumerate(policy.schedule.sigma):
        mean = policy.mean(states[step].to(policy.dtype), [step] * IMAGES, [""] * IMAGES)
        z = this_round.batch.noise.step(range(IMAGES), step)
        costate = -(advantages.view(-1, 1, 1, 1) * z / (sigma * z[0].numel() * IMAGES)).to(mean.dtype)
        scale = float(costate.abs().max())  # so that nothing leaves fp16's range
        parts = torch.autograd.grad(mean, weights, costate / scale)
        total += torch.cat([part.double().flatten() for part in parts]) * scale
    return total


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", [Reinforce, ReinforceOnePass])
@pytest.mark.parametrize("updates", [1, 2])
def test_gradient_is_that_of_the_policy_that_sampled(precision: str, kind: Any, updates: int) -> None:
    """As near to fp64 as a plain half-precision graph of the means, in the first update and in a later one.

    What the stored states would give for the noise is off by more than ten times as much.
    """
    half, exact = shortcut(HALF[precision]), shortcut(torch.float64)
    half_precision.put_weights(exact, half)
    config = ReinforceConfig.model_validate({"kind": "reinforce", "inner_updates": updates})
    reward = WeightedReward([WeightedPart("brightness", Brightness())], device=CPU)
    pieces = Pieces(Gradients(list(half.trainable().values())))
    method = kind(config, reward, pieces, Ranks(0, 1, CPU), knobs(3, one_pass=kind is ReinforceOnePass))
    this_round = round_of(half, IMAGES)
    experience = method.collect(half, this_round)
    mean = z = torch.empty(0)
    states: list[torch.Tensor] = [this_round.batch.noise.initial(range(IMAGES)).to(HALF[precision])]
    with torch.no_grad():
        for step in range(STEPS):
            mean = half.mean(states[-1], [step] * IMAGES, [""] * IMAGES)
            z = this_round.batch.noise.step(range(IMAGES), step)
            stored = HALF[precision] if updates == 1 else torch.float32
            states.append((mean + half.schedule.sigma[step] * z).to(stored))
    got = [gradient(method, half, experience) for _ in range(updates)]
    plain, truth = (by_hand(policy, experience.advantages_n, states, this_round) for policy in (half, exact))
    rounded = 2 * half_precision.relative_error([plain], [truth])
    for one in got:
        assert half_precision.relative_error([one], [truth]) < rounded
    last = states[-1].to(HALF[precision]).float() - mean
    assert float((last / half.schedule.sigma[-1] - z).square().mean().sqrt()) > 10 * rounded


def test_a_half_precision_trajectory_is_rounded_where_one_update_reads_it() -> None:
    policy = shortcut(torch.float16)
    for updates, dtype in ((1, torch.float16), (2, torch.float32)):
        config = ReinforceConfig.model_validate({"kind": "reinforce", "inner_updates": updates})
        reward = WeightedReward([WeightedPart("brightness", Brightness())], device=CPU)
        method = Reinforce(config, reward, Pieces(Gradients([])), Ranks(0, 1, CPU), knobs(3))
        trajectory = method.collect(policy, round_of(policy, 2)).trajectory
        assert (trajectory.dtype, trajectory.is_rounded) == (dtype, updates == 1)
