"""REINFORCE's gradient: closed forms, plain autograd, and what must not matter."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from memdiff.chain.ddim import log_prob, step_sigma
from memdiff.chain.noise import Noise, Stream
from memdiff.chain.schedule import Schedule, mean_per_prediction
from memdiff.methods.config import ReinforceConfig
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.reinforce import Experience, Reinforce, clipped_slope
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces
from tests.helpers.tiny import CPU, tiny_policy
from tests.workers.engine_parity import Brightness, knobs, relative

ALONE = Ranks(0, 1, CPU)


class GaussianPolicy:
    """x ~ N(theta, 1) in one step, reward x: all its integrals are known."""

    def __init__(self, theta: float) -> None:
        self.theta = torch.nn.Parameter(torch.tensor(theta))
        self.schedule = Schedule((0,), (0.5,), (0.9,), (1.0,), "epsilon", None)
        self.shape, self.device, self.dtype = (1, 1, 1), CPU, torch.float32
        self.networks = {"unet": torch.nn.Module()}

    def mean(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        return self.theta + torch.zeros_like(x_t_BCHW)

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        return x_0_BCHW

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {"theta": self.theta}

    def trains(self, step: int) -> bool:
        return True

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        raise AssertionError("a toy is not saved")


def reinforce(policy, *, micro_batch: int = 16, reward=None, **config) -> Reinforce:
    parts = WeightedReward([WeightedPart("brightness", reward or Brightness())], device=CPU)
    gradients = Gradients(list(policy.trainable().values()))
    settings = ReinforceConfig.model_validate({"kind": "reinforce", **config})
    return Reinforce(settings, parts, Pieces(gradients), ALONE, knobs(micro_batch))


def round_of(policy, images: int, number: int = 1) -> Round:
    noise = Noise(seed=7, stream=Stream.ROLLOUT, round_number=number, shape=policy.shape)
    return Round(Batch(range(images), [""] * images, images, noise), Clock(CPU))


def gradient(method: Reinforce, policy, experience: Experience) -> torch.Tensor:
    method.pieces.gradients.zero()
    method.differentiate(policy, experience)
    return torch.cat([total.flatten() for total in method.pieces.gradients.sums])


def test_gaussian_policy_sample_by_sample() -> None:
    """d log N(x; theta, 1) / d theta = x - theta, so the loss's gradient is -1/N sum_i A_i (x_i - theta), by hand."""
    policy: Any = GaussianPolicy(0.3)
    method = reinforce(policy, advantage="center", log_prob_reduction="sum")
    experience = method.collect(policy, round_of(policy, 100))
    x_N = experience.trajectory.final(range(100)).flatten().double()
    truth = -((x_N - x_N.mean()) * (x_N - 0.3)).mean()
    assert float(gradient(method, policy, experience)) == pytest.approx(float(truth), rel=1e-5)


def test_gaussian_policy_in_expectation() -> None:
    """J = E[x] = theta, so dJ/dtheta = 1. With a leave-one-out baseline the estimator is unbiased and its variance is
    about Var[(x - theta)^2] / N = 2 / N: 4,096 samples give 1 +- 0.022; held to five of those."""
    policy: Any = GaussianPolicy(0.0)
    method = reinforce(policy, advantage="leave_one_out", micro_batch=512)
    experience = method.collect(policy, round_of(policy, 4096))
    assert float(-gradient(method, policy, experience)) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 4096))


def autograd_truth(policy, experience: Experience, config: ReinforceConfig, weights: Sequence[float]) -> torch.Tensor:
    """One graph: -1/N sum_i A_i sum_k w_k log p(x_{k+1} | x_k)."""
    images, loss = experience.trajectory.images, torch.zeros(())
    for step in policy.schedule.steps_with_density:
        x_t, x_s = experience.trajectory.transitions([(image, step) for image in range(images)])
        steps = [step] * images
        mean = policy.mean(x_t, steps)
        value = log_prob(x_s, mean, step_sigma(steps, policy.schedule, mean), reduction=config.log_prob_reduction)
        loss = loss - (experience.advantages_n * value).sum() * weights[step] / images
    gradients = torch.autograd.grad(loss, list(policy.trainable().values()))
    return torch.cat([entry.flatten() for entry in gradients])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("weights", ["uniform", (*[1.0, 0.0, 2.0] * 5, 9.0)])
def test_gradient_is_that_of_one_graph(reduction: str, clip: bool, weights) -> None:
    """A real UNet, 16 steps, clipping on and off, per-step weights: <= 1e-5 relative. The last step has no density,
    so its weight of 9 counts for nothing."""
    policy = tiny_policy(steps=16, clip=clip)
    method = reinforce(policy, log_prob_reduction=reduction, step_weights=weights)
    experience = method.collect(policy, round_of(policy, 6))
    numbers = [1.0] * 15 + [0.0] if weights == "uniform" else [1.0, 0.0, 2.0] * 5 + [0.0]
    truth = autograd_truth(policy, experience, method.config, numbers)
    assert truth.norm() > 0
    assert relative([gradient(method, policy, experience)], [truth]) < 1e-5


@pytest.mark.parametrize("micro_batch", [1, 7, 30, 128])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_grouping_and_checkpointing_do_not_matter(micro_batch: int, checkpointing: bool) -> None:
    """Micro-batches that mix steps, divide the pairs or not, are larger than all: gradients <= 1e-5 relative apart."""
    policy = tiny_policy(steps=16, clip=True, checkpointing=checkpointing)
    plain = tiny_policy(steps=16, clip=True)
    reference = reinforce(plain, micro_batch=6)
    truth = gradient(reference, plain, reference.collect(plain, round_of(plain, 6)))
    method = reinforce(policy, micro_batch=micro_batch)
    got = gradient(method, policy, method.collect(policy, round_of(policy, 6)))
    assert relative([got], [truth]) < 1e-5


def test_same_shape_same_bits() -> None:
    """At equal batch shapes a round is bitwise reproducible."""
    policy = tiny_policy()
    method = reinforce(policy)
    first, second = (gradient(method, policy, method.collect(policy, round_of(policy, 6))) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_first_ratio_is_exactly_one(dtype: torch.dtype) -> None:
    """The old log-probs are those of the first pass in its own grouping: no clipping, no KL, not even by rounding."""
    policy = tiny_policy(dtype=dtype)
    method = reinforce(policy, inner_updates=2, ratio_clip=1e-9)
    experience = method.collect(policy, round_of(policy, 6))
    assert len(list(method.updates(experience))) == 2
    metrics = method.differentiate(policy, experience)
    assert metrics["clip_fraction"] == 0 and metrics["approx_kl"] == 0
    again = method.differentiate(policy, experience)  # nothing was applied in between
    assert again["clip_fraction"] == 0 and again["approx_kl"] == 0
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.05)
    moved = method.differentiate(policy, experience)
    assert moved["clip_fraction"] > 0.3 and moved["approx_kl"] > 0


@pytest.mark.parametrize("clip", [1e-3, 0.1, 10.0])
def test_clipped_slope_is_the_surrogates_gradient(clip: float, generator: torch.Generator) -> None:
    """Against autograd of min(ratio A, clamp(ratio) A), PPO equation 7, on random log-probs and advantages."""
    new, old, advantage = (torch.randn(200, generator=generator, dtype=torch.float64) * s for s in (0.2, 0.2, 1.0))
    new.requires_grad_()
    ratio = torch.exp(new - old)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    (truth,) = torch.autograd.grad(surrogate.sum(), new)
    got_ratio, slope = clipped_slope(new.detach(), old, advantage, clip)
    torch.testing.assert_close(got_ratio, ratio.detach())
    torch.testing.assert_close(slope, truth)


def test_step_gradient_norm_is_that_of_the_networks_output() -> None:
    """The diagnostic, computed from log-probs alone, against autograd with respect to eps of every step."""
    policy = tiny_policy()
    method = reinforce(policy)
    experience = method.collect(policy, round_of(policy, 6))
    got = method.differentiate(policy, experience)["step_gradient_norm"]
    assert got[-1] is None
    for step in policy.schedule.steps_with_density:
        x_t, x_s = experience.trajectory.transitions([(image, step) for image in range(6)])
        steps = [step] * 6
        mean = policy.mean(x_t, steps).detach().requires_grad_()
        value = log_prob(x_s, mean, step_sigma(steps, policy.schedule, mean), reduction="mean")
        (by_mean,) = torch.autograd.grad((experience.advantages_n * value).sum() / 6, mean)
        assert got[step] == pytest.approx(float(by_mean.norm()) * mean_per_prediction(policy.schedule, step), rel=1e-3)


def test_equal_rewards_move_nothing() -> None:
    class Constant:
        differentiable, networks = False, ()

        def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            return torch.full((len(images_BCHW),), 0.1)

    policy = tiny_policy()
    method = reinforce(policy, reward=Constant())
    assert float(gradient(method, policy, method.collect(policy, round_of(policy, 7))).abs().max()) == 0


def test_trajectory_replays_what_was_sampled() -> None:
    """In fp16 too: the stored x_s scored against the mean recomputed from the stored x_t has z of unit variance.

    z^2 averages 1 with a std of sqrt(2 / numbers); held to five of those plus fp16's rounding of x.
    """
    policy = tiny_policy(dtype=torch.float16, steps=10, clip=True)
    method = reinforce(policy)
    experience = method.collect(policy, round_of(policy, 12))
    for step in policy.schedule.steps_with_density:
        x_t, x_s = experience.trajectory.transitions([(image, step) for image in range(12)])
        assert x_t.dtype == torch.float16
        with torch.no_grad():
            mean = policy.mean(x_t, [step] * 12)
        z = (x_s.float() - mean) / policy.schedule.sigma[step]
        assert float(z.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / z.numel()) + 0.02)


def test_phases_are_timed_apart() -> None:
    policy = tiny_policy()
    method = reinforce(policy)
    this_round = round_of(policy, 6)
    method.differentiate(policy, method.collect(policy, this_round))
    assert set(this_round.clock.seconds) == {"rollout", "reward", "train"}
    assert all(seconds > 0 for seconds in this_round.clock.seconds.values())


def test_rehearsal_leaves_no_trace_in_the_weights() -> None:
    """It runs a step and a piece at full batch size; the sums it leaves are finite, and the parameters the same."""
    policy = tiny_policy()
    method = reinforce(policy)
    before = [parameter.detach().clone() for parameter in policy.trainable().values()]
    noise = Noise(seed=0, stream=Stream.PROBE, round_number=0, shape=policy.shape)
    method.rehearse(policy, noise, 3, [""])
    assert all(torch.equal(a, b) for a, b in zip(before, policy.trainable().values(), strict=True))
    assert 0 < float(method.pieces.gradients.max_abs()) < math.inf


def test_the_replay_of_an_fp64_policy() -> None:
    """Log-probs stay in what they were scored in: a second pass has ratio 1 and the gradient of one graph to 1e-12."""
    policy = tiny_policy(steps=6, dtype=torch.float64)
    method = reinforce(policy, inner_updates=2)
    experience = method.collect(policy, round_of(policy, 4))
    first = gradient(method, policy, experience)
    assert experience.old_log_probs is not None and experience.old_log_probs.dtype is torch.float64
    truth = autograd_truth(policy, experience, method.config, [1.0] * 6)
    assert (first - truth).norm() <= 1e-6 * truth.norm()
    assert torch.equal(gradient(method, policy, experience), first)
