"""A step's baseline, the reward of the image predicted there: no bias, less variance, the same on every rank."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from memdiff.methods.config import ReinforceConfig
from memdiff.methods.predicted_baseline import predicted_rewards, step_advantages
from memdiff.methods.reinforce import Reinforce
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces
from tests.helpers.one_graph import ALONE, CPU, knobs, round_of, waves
from tests.helpers.tiny import tiny_policy

IMAGES = 6


class Bright:
    """Yes for images that are brighter than the others of their batch usually are."""

    differentiable = False
    networks = ()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Any) -> torch.Tensor:
        return (images_BCHW.mean(dim=(1, 2, 3)) > 0.5).float()


def reinforce(policy: Any, reward: WeightedReward | None = None, **config: Any) -> Reinforce:
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    settings = ReinforceConfig.model_validate({"kind": "reinforce", **config})
    return Reinforce(settings, reward or waves(), pieces, ALONE, knobs())


def test_a_random_walk_by_hand() -> None:
    """x_K = sum of K draws z_k, r = x_K, V_k = x_k: sum_k A_ik z_ik has mean K and variance 2 K + K (K - 1) / 2 = 65
    with the baseline, 2 K^2 = 200 without (K = 10); 20,000 walks: both means within five standard errors."""
    steps, walks = 10, 20_000
    z_KN = torch.randn(steps, walks, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rewards_N, values_KN = z_KN.sum(dim=0), z_KN.cumsum(dim=0) - z_KN
    plain_N = rewards_N - rewards_N.mean()
    with_KN = step_advantages(plain_N, rewards_N, values_KN, spread=1.0)
    without, with_baseline = (plain_N * z_KN).sum(dim=0), (with_KN * z_KN).sum(dim=0)
    assert float(without.mean()) == pytest.approx(steps, abs=5 * (200 / walks) ** 0.5)
    assert float(with_baseline.mean()) == pytest.approx(steps, abs=5 * (65 / walks) ** 0.5)
    assert float(without.var()) == pytest.approx(200, rel=0.1)
    assert float(with_baseline.var()) == pytest.approx(65, rel=0.1)


def test_what_explains_nothing_takes_nothing_off() -> None:
    """Equal values, and values against the rewards, whose coefficient would be negative."""
    rewards_N = torch.tensor([1.0, -2.0, 0.5, 3.0])
    advantages_N = rewards_N - rewards_N.mean()
    values_KN = torch.stack([torch.full((4,), 7.0), -rewards_N])
    assert torch.equal(step_advantages(advantages_N, rewards_N, values_KN, spread=1.0), advantages_N.repeat(2, 1))


def test_the_coefficient_is_that_of_the_others() -> None:
    """Three images by hand: V - mean = (-1, 0, 1), r - mean = (-2, -1, 3): 5 / 2 over all; without image 0: 3 / 1,
    and the like; all above 1, so held at 1. Rewards a fourth of that: (3 / 4, 5 / 8, 1 / 2)."""
    values_KN = torch.tensor([[1.0, 2.0, 3.0]])
    rewards_N = torch.tensor([-2.0, -1.0, 3.0])
    assert step_advantages(rewards_N, rewards_N, values_KN, spread=1.0)[0].tolist() == [-1.0, -1.0, 2.0]
    advantages = step_advantages(rewards_N / 4, rewards_N / 4, values_KN, spread=1.0)[0]
    assert advantages.tolist() == pytest.approx([-0.5 + 0.75, -0.25, 0.75 - 0.5])


@pytest.mark.parametrize("count", [16, 64, 256])
def test_an_image_has_little_say_in_its_own_baseline(count: int) -> None:
    """By Stein's lemma E[A_i z_i] = E[dA_i / dr_i] for r = V / 2 + noise z: with V given, c_i (V_i - mean V) holds
    r_i only in the mean of r, and d/dr_i of it is (V_i - mean V)^2 / (N S_i), S_i the sum of the others' squares.

    Its mean over the images lies between 1 / N^2 and 2 / N^2: the baseline's say in the gradient's expectation.
    """
    values_N = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rewards_N = (values_N / 2).requires_grad_()
    with_KN = step_advantages(torch.zeros_like(values_N), rewards_N, values_N[None], spread=1.0)
    own = [torch.autograd.grad(with_KN[0, i], rewards_N, retain_graph=True)[0][i] for i in range(count)]
    squares_N = (values_N - values_N.mean()).square()
    torch.testing.assert_close(torch.stack(own), -squares_N / (count * (squares_N.sum() - squares_N)))
    assert 1 <= -float(torch.stack(own).mean()) * count**2 <= 2


@pytest.mark.parametrize("advantage", ["whiten", "center", "leave_one_out"])
def test_a_prediction_that_is_the_image_leaves_nothing(advantage: str) -> None:
    """The last step's mean is x_0 itself: its value is the reward, up to rounding, and its variance left is zero."""
    policy = tiny_policy(steps=6, clip=True)
    method = reinforce(policy, advantage=advantage, baseline="predicted_image")
    experience = method.collect(policy, round_of(policy, 64))
    slopes = method.reward.slopes()
    last = predicted_rewards(
        policy, experience.trajectory, experience.round, [5], method.reward, slopes, ALONE, method.knobs
    )[0]
    assert torch.allclose(last, experience.rewards_N, atol=1e-4)
    left = experience.metrics["step_variance_left"]
    assert len(left) == 6 and all(0 <= float(share) <= 1.2 for share in left)
    assert float(left[4]) < float(left[0])
    assert experience.metrics["reward_queries"] == 64 * (1 + 5)


def test_gradient_is_that_of_one_graph() -> None:
    """-1/N sum_i sum_k A_ik log p in one graph, <= 1e-5 relative; it differs from the plain one."""
    from memdiff.chain.ddim import log_prob, step_sigma

    policy = tiny_policy(steps=8, clip=True)
    method = reinforce(policy, baseline="predicted_image")
    experience = method.collect(policy, round_of(policy, IMAGES))
    assert experience.step_advantages_Kn is not None
    method.differentiate(policy, experience)
    got = torch.cat([total.flatten() for total in method.pieces.gradients.sums])

    def truth(advantages_Kn: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros(())
        for step in policy.schedule.steps_with_density:
            x_t, x_s = experience.trajectory.transitions([(image, step) for image in range(IMAGES)])
            mean = policy.mean(x_t, [step] * IMAGES)
            value = log_prob(x_s, mean, step_sigma([step] * IMAGES, policy.schedule, mean), reduction="mean")
            loss = loss - (advantages_Kn[step] * value).sum() / IMAGES
        gradients = torch.autograd.grad(loss, list(policy.trainable().values()))
        return torch.cat([entry.flatten() for entry in gradients])

    with_baseline = truth(experience.step_advantages_Kn)
    assert (got - with_baseline).norm() <= 1e-5 * with_baseline.norm()
    plain = truth(experience.advantages_n.repeat(8, 1))
    assert (got - plain).norm() > 1e-2 * plain.norm()


def test_steps_without_a_weight_are_not_asked() -> None:
    """Two of seven steps: two values an image, and no advantage of the others changes."""
    policy = tiny_policy(steps=8, clip=True)
    method = reinforce(policy, baseline="predicted_image", step_weights=[0, 0, 0, 0, 0, 1, 1, 0])
    experience = method.collect(policy, round_of(policy, IMAGES))
    assert experience.metrics["reward_queries"] == IMAGES * 3
    assert experience.step_advantages_Kn is not None
    assert torch.equal(experience.step_advantages_Kn[:5], experience.advantages_n.repeat(5, 1))
    assert method.passes(policy) == 8 + 2 * 2


def test_share_parts_count_with_this_rounds_slope() -> None:
    """2 weight (target - share), by hand: 3 of 4 yes at target 0.5 and weight 10 gives -5; a plain part its weight."""
    parts = [
        WeightedPart("share", Bright(), 10.0, is_share=True, target_share=0.5),
        WeightedPart("plain", Bright(), 2.0),
    ]
    assert list(WeightedReward(parts, device=CPU).slopes([0.75, 0.75])) == [-5.0, 2.0]


def test_prompts_of_their_own_are_refused() -> None:
    """One line that says what to do."""
    with pytest.raises(ValidationError, match="per_prompt: false"):
        ReinforceConfig.model_validate({"kind": "reinforce", "baseline": "predicted_image", "per_prompt": True})
