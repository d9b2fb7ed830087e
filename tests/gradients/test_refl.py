"""ReFL: one late step, its predicted image, and the gradient through that step alone."""

from collections import Counter
from typing import Any

import pytest
import torch

from memdiff.methods.config import ReflConfig
from memdiff.methods.refl import Refl
from memdiff.rewards.weighted_sum import WeightedReward
from tests.helpers.one_graph import chain, distance, flat_gradient, gradient_of, make, round_of, total, waves
from tests.helpers.tiny import tiny_policy, tiny_stable_diffusion


def refl(**config: Any) -> ReflConfig:
    return ReflConfig.model_validate({"kind": "refl", "first_step": 4, "last_step": 8, "target": None, **config})


def truth_of(
    policy: Any, this_round: Any, steps: list[int], config: ReflConfig, reward: WeightedReward
) -> torch.Tensor:
    """Image by image: the state before its own step without a graph, x0 predicted from it with one."""
    losses = []
    for image, step in enumerate(steps):
        with torch.no_grad():
            x = chain(policy, this_round, [99] * len(steps), until=step)[image : image + 1]
        prompts = [this_round.batch.prompts[image]]
        r = total(reward, policy.decode(policy.x0(x, [step], prompts)), prompts)
        losses.append(-r if config.target is None else torch.relu(config.target - r))
    return flat_gradient(config.scale * torch.cat(losses).mean(), policy)


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_gradient_by_hand(micro_batch: int, kept: int) -> None:
    """Images at steps of their own in one micro-batch: <= 1e-5 relative; the loss's scale is in it."""
    policy = tiny_policy(steps=10, clip=True)
    this_round, config = round_of(policy, 5), refl(scale=1e-3)
    method = make(Refl, config, policy, micro_batch=micro_batch, kept_steps=kept)
    steps = list(method.collect(policy, this_round).starts_n)
    assert len(set(steps)) > 1
    got, metrics = gradient_of(method, policy, this_round)
    assert distance(got, truth_of(policy, this_round, steps, config, waves())) <= 1e-5
    assert [norm is not None for norm in metrics["costate_norm"]] == [step in steps for step in range(10)]


def test_bounded_and_guided_text_model() -> None:
    """Two parts, a target between the rewards, guidance through both branches."""
    policy = tiny_stable_diffusion(steps=4, guidance=3.0)
    this_round, reward = round_of(policy, 4), waves(1.0, -0.5)
    probe = refl(first_step=1, last_step=3)
    steps = list(make(Refl, probe, policy).collect(policy, this_round).starts_n)
    with torch.no_grad():
        rewards = torch.cat([
            total(reward, policy.decode(policy.x0(chain(policy, this_round, [9] * 4, until=step)[i : i + 1], [step],
                  [this_round.batch.prompts[i]])), [""])
            for i, step in enumerate(steps)
        ])  # fmt: skip
    config = refl(first_step=1, last_step=3, target=float(rewards.median()) + 1e-3)
    got, _ = gradient_of(make(Refl, config, policy, reward), policy, this_round)
    assert distance(got, truth_of(policy, this_round, steps, config, reward)) <= 1e-5


def test_steps_are_uniform() -> None:
    """2,000 draws over 30..39, the paper's range: chi-squared, 9 degrees of freedom, mean 9, std 4.2, held to five."""
    method = make(Refl, refl(first_step=30, last_step=39), tiny_policy(steps=2))
    counts = Counter(method.step(seed=1, round_number=r, image=i) for r in range(20) for i in range(100))
    assert set(counts) == set(range(30, 40))
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 9 + 5 * 4.2


def test_rehearsal() -> None:
    policy = tiny_policy(steps=10)
    method = make(Refl, refl(), policy)
    method.rehearse(policy, round_of(policy, 3).batch.noise, 3, [""])
    assert float(method.pieces.gradients.max_abs()) > 0
