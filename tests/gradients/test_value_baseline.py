"""REINFORCE's learnt baseline: plain torch, no bias, less variance, in checkpoints. Ranks: test_sft_pg.py."""

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from memdiff.chain.ddim import log_prob, step_sigma
from memdiff.chain.noise import Noise, Stream
from memdiff.engine.checkpoint import Checkpoints
from memdiff.engine.engine import DeepSpeedEngine
from memdiff.errors import ConfigError
from memdiff.methods.build import build_method
from memdiff.methods.config import ReinforceConfig
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.learners_config import LEARNT_BYTES
from memdiff.methods.reinforce import Reinforce
from memdiff.recipe.reading import check_recipe
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces
from tests.gradients.test_sft_pg import Engine, Walk
from tests.helpers.half_precision import relative_error
from tests.helpers.one_graph import ALONE, knobs, round_of, waves
from tests.helpers.tiny import CPU, tiny_policy


class Value:
    """The reward is the state's own value."""

    differentiable, networks = False, ()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Any) -> torch.Tensor:
        return images_BCHW.flatten(start_dim=1).sum(dim=1)


def reinforce(policy: Any, reward: WeightedReward | None = None, **config: Any) -> Reinforce:
    """With a value function that learns fast."""
    method = ReinforceConfig.model_validate(
        {"kind": "reinforce", "baseline": "value", "value": {"learning_rate": 1e-2, "width": 16, "steps": 20}, **config}
    )
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    method = build_method(method, reward or waves(), pieces, ALONE, knobs(64), policy, seed=3)
    assert isinstance(method, Reinforce)
    return method


def of_seed(policy: Any, seed: int, images: int, number: int = 1) -> Round:
    noise = Noise(seed=seed, stream=Stream.ROLLOUT, round_number=number, shape=policy.shape)
    return Round(Batch(range(images), [""] * images, images, noise), Clock(CPU))


def test_at_first_it_does_nothing_and_then_learns_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """v = 0 takes nothing off. Each of 20 gradients is plain torch's of the mean over pairs of (v - A_i)^2 at the same
    weights (<= 1e-4 of its norm), and each step is Adam's on that gradient.

    Not the weights after 20 steps of each: Adam makes a full step of an element whose gradient is rounding alone.
    """
    policy = tiny_policy(steps=5)
    method = reinforce(policy)
    assert method.value is not None
    learner = method.value.learner
    plain = copy.deepcopy(learner.network)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    noted: list[list[torch.Tensor]] = []  # gradients and the weights before them
    step = learner.step

    def noted_step(when: str) -> float:
        weights = [parameter.detach().clone() for parameter in learner.parameters]
        gradients = [parameter.grad.clone() for parameter in learner.parameters if parameter.grad is not None]
        noted.append([*gradients, *weights])
        return step(when)

    monkeypatch.setattr(learner, "step", noted_step)
    experience = method.collect(policy, round_of(policy, 6))
    assert experience.step_advantages_Kn is not None and len(noted) == 20
    torch.testing.assert_close(experience.step_advantages_Kn, experience.advantages_n.repeat(5, 1))
    pairs = [(image, step) for step in policy.schedule.steps_with_density for image in range(6)]
    x_t, _ = experience.trajectory.transitions(pairs)
    target = experience.advantages_n[[image for image, _ in pairs]]
    parameters, losses = list(plain.parameters()), []
    for gradients_and_weights in noted:
        gradients, weights = gradients_and_weights[: len(parameters)], gradients_and_weights[len(parameters) :]
        for parameter, weight in zip(parameters, weights, strict=True):
            torch.testing.assert_close(parameter.detach(), weight, rtol=1e-6, atol=1e-7)
        loss = (plain(x_t, [k for _, k in pairs]) - target).square().mean()
        losses.append(float(loss.detach()))
        assert relative_error(gradients, torch.autograd.grad(loss, parameters)) < 1e-4
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter, weight in zip(parameters, learner.parameters, strict=True):
        torch.testing.assert_close(parameter, weight, rtol=1e-6, atol=1e-7)
    assert losses[-1] < 0.5 * losses[0]
    assert experience.metrics["value_loss"] == pytest.approx(losses[-1], rel=1e-3)


def test_gradient_is_that_of_one_graph() -> None:
    """-1/N sum_i sum_k A_ik log p with what a round before has taught: <= 1e-4 relative, in other groups."""
    policy = tiny_policy(steps=8, clip=True)
    method = reinforce(policy)
    method.collect(policy, round_of(policy, 6))
    experience = method.collect(policy, round_of(policy, 6, number=2))
    advantages_Kn = experience.step_advantages_Kn
    assert advantages_Kn is not None and float((advantages_Kn - experience.advantages_n).abs().max()) > 1e-2
    method.differentiate(policy, experience)
    loss = torch.zeros(())
    for step in policy.schedule.steps_with_density:
        x_t, x_s = experience.trajectory.transitions([(image, step) for image in range(6)])
        mean = policy.mean(x_t, [step] * 6)
        value = log_prob(x_s, mean, step_sigma([step] * 6, policy.schedule, mean), reduction="mean")
        loss = loss - (advantages_Kn[step] * value).sum() / 6
    truth = torch.cat([entry.flatten() for entry in torch.autograd.grad(loss, list(policy.trainable().values()))])
    got = torch.cat([total.flatten() for total in method.pieces.gradients.sums])
    assert (got - truth).norm() <= 1e-4 * truth.norm()


def test_less_variance_over_ten_seeds_and_no_bias() -> None:
    """A walk of three steps, reward x = x_init + 3 theta + sigma S, S = z_0 + z_1 + z_2, sigma 1/2; v has learnt
    from 15 rounds of 128.

    Times sigma, an image's gradient is (x_init + sigma S) S without a baseline, of variance 3 + sigma^2 2 x 9 = 7.5;
    with the true v it is sigma sum_k sum_{j >= k} z_j z_k, sigma^2 (3 x 2 + 3) = 2.25, 0.3 of that. Held to a half in
    each of ten seeds; the means over all 5,120 images agree within five standard errors."""
    policy: Any = Walk()
    reward = WeightedReward([WeightedPart("value", Value())], device=CPU)
    method = reinforce(policy, reward, advantage="center", log_prob_reduction="sum")
    for number in range(1, 16):
        method.collect(policy, of_seed(policy, 100, 128, number))
    ratios, plain, learnt = [], [], []
    for seed in range(10):
        experience = method.collect(policy, of_seed(policy, seed, 512, 20 + seed))
        states_Kn = torch.stack([experience.trajectory.state(k).flatten() for k in range(4)])
        scores_Kn = (states_Kn[1:] - states_Kn[:-1] - policy.theta.detach()) / 0.25
        assert experience.step_advantages_Kn is not None
        without, with_value = experience.advantages_n * scores_Kn, experience.step_advantages_Kn * scores_Kn
        plain.append(without.sum(dim=0))
        learnt.append(with_value.sum(dim=0))
        ratios.append(float(learnt[-1].var() / plain[-1].var()))
    assert max(ratios) < 0.5, ratios
    difference = torch.cat(learnt) - torch.cat(plain)
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / len(difference) ** 0.5


def test_a_checkpoint_holds_it(tmp_path: Path) -> None:
    """Round 2 after round 1 in new objects from its checkpoint: the same advantages and weights, bit for bit."""
    policy = tiny_policy(steps=5)
    straight = reinforce(policy)
    straight.collect(policy, round_of(policy, 6))
    checkpoints = Checkpoints(tmp_path, ALONE, keep=1)
    checkpoints.learners = straight.learners
    path = checkpoints.save(cast(DeepSpeedEngine, Engine()), {"round": 1})
    resumed = reinforce(policy)
    assert path is not None
    checkpoints.learners = resumed.learners
    checkpoints.load(cast(DeepSpeedEngine, Engine()), path)
    first, second = (one.collect(policy, round_of(policy, 6, number=2)) for one in (straight, resumed))
    assert torch.equal(cast(torch.Tensor, first.step_advantages_Kn), cast(torch.Tensor, second.step_advantages_Kn))
    assert straight.value is not None and resumed.value is not None
    for mine, other in zip(straight.value.learner.parameters, resumed.value.learner.parameters, strict=True):
        assert torch.equal(mine, other)
    assert reinforce(policy, baseline="none").learners == {}


def test_recipes_say_it() -> None:
    """Not with one pass, whose images have one number each; its bytes are declared."""
    recipe = {
        "model": {"kind": "embedded"},
        "method": {"kind": "reinforce", "baseline": "value"},
        "reward": [{"kind": "digits"}],
    }
    method = check_recipe(recipe, source="test").method
    assert method.own_bytes((1, 16, 16), 50) == LEARNT_BYTES * method.value.elements((1, 16, 16), 50) > 0  # pyright: ignore
    plain = check_recipe({**recipe, "method": {"kind": "reinforce"}}, source="test").method
    assert plain.own_bytes((1, 16, 16), 50) == 0
    with pytest.raises(ConfigError, match=r"memory\.one_pass goes with method\.baseline: none"):
        check_recipe({**recipe, "memory": {"one_pass": True}}, source="test")
