"""DPOK's distance to the untrained model: closed forms, plain autograd, and zero where nothing is trained yet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from memdiff.chain.ddim import kl_of_means, log_prob, step_sigma
from memdiff.chain.schedule import Schedule
from memdiff.methods.config import ReinforceConfig
from memdiff.models.config import AdapterConfig
from tests.gradients.test_reinforce import GaussianPolicy, gradient, reinforce, relative, round_of
from tests.helpers.tiny import tiny_policy


class AnchoredGaussian(GaussianPolicy):
    """x ~ N(theta, 1 / 4) in one step; before training theta was 0.1."""

    def __init__(self, theta: float) -> None:
        super().__init__(theta)
        self.schedule = Schedule((0,), (0.5,), (0.9,), (0.5,), "epsilon", None)

    @contextmanager
    def base(self) -> Iterator[None]:
        trained = self.theta
        self.theta = torch.nn.Parameter(torch.tensor(0.1))
        yield
        self.theta = trained


def moved(policy, seed: int = 5) -> None:
    """Somewhere off the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_kl_is_that_of_torchs_gaussians(generator: torch.Generator) -> None:
    """Against torch.distributions, summed and averaged over C H W."""
    mean, base = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(-1, 1, 1, 1)
    truth = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, sigma.expand_as(mean)), torch.distributions.Normal(base, sigma.expand_as(mean))
    ).flatten(start_dim=1)
    torch.testing.assert_close(kl_of_means(mean, base, sigma, reduction="sum"), truth.sum(dim=1))
    torch.testing.assert_close(kl_of_means(mean, base, sigma, reduction="mean"), truth.mean(dim=1))


def test_gradient_and_metric_by_hand() -> None:
    """KL = (theta - 0.1)^2 / (2 / 4), so b KL adds 4 b (theta - 0.1) to the gradient, whatever the images."""
    plain: Any = AnchoredGaussian(0.3)
    with_kl: Any = AnchoredGaussian(0.3)
    without = reinforce(plain, advantage="center")
    method = reinforce(with_kl, advantage="center", kl_weight=0.7)
    before = gradient(without, plain, without.collect(plain, round_of(plain, 50)))
    experience = method.collect(with_kl, round_of(with_kl, 50))
    after = gradient(method, with_kl, experience)
    assert float(after - before) == pytest.approx(0.7 * 4 * 0.2, rel=1e-5)
    assert method.differentiate(with_kl, experience)["kl_to_base"] == pytest.approx(2 * 0.2**2, rel=1e-5)


def policies(kind: str):
    """Full fine-tuning with a copy of the base, or LoRA, which is its own base when switched off."""
    return tiny_policy(keep_base=True) if kind == "full" else tiny_policy(adapter=AdapterConfig(rank=2, alpha=3.0))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_gradient_is_that_of_one_graph(kind: str, reduction: str) -> None:
    """A real UNet, five steps of their own weights: log-probs and KL in one autograd graph, <= 1e-5 relative."""
    policy = policies(kind)
    weights = (1.0, 0.5, 0.0, 2.0, 9.0)
    moved(policy)
    settings = {"log_prob_reduction": reduction, "step_weights": weights}
    method = reinforce(policy, micro_batch=5, kl_weight=0.3, **settings)
    experience = method.collect(policy, round_of(policy, 6))
    config, loss, images = ReinforceConfig.model_validate({"kind": "reinforce", **settings}), torch.zeros(()), range(6)
    for step in policy.schedule.steps_with_density:
        x_t, x_s = experience.trajectory.transitions([(image, step) for image in images])
        mean = policy.mean(x_t, [step] * 6)
        with policy.base(), torch.no_grad():
            base = policy.mean(x_t, [step] * 6)
        sigma = step_sigma([step] * 6, policy.schedule, mean)
        value = log_prob(x_s, mean, sigma, reduction=config.log_prob_reduction)
        square = ((mean - base) ** 2).flatten(start_dim=1) / (2 * policy.schedule.sigma[step] ** 2)
        kl = square.mean(dim=1) if reduction == "mean" else square.sum(dim=1)
        loss = loss + weights[step] / 6 * (-(experience.advantages_n * value) + 0.3 * kl).sum()
    gradients = torch.autograd.grad(loss, list(policy.trainable().values()))
    truth = torch.cat([entry.flatten() for entry in gradients])
    assert relative([gradient(method, policy, experience)], [truth]) < 1e-5
    assert relative([gradient(reinforce(policy, micro_batch=5, **settings), policy, experience)], [truth]) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_zero_at_the_base(kind: str, dtype: torch.dtype) -> None:
    """Before the first update the KL is exactly 0 and adds exactly nothing; away from it, it is positive.

    A kept copy lies elsewhere in memory than the weights, and by alignment kernels may round otherwise (they do with
    AVX2): there to some 2^-24, or 2^-11 in fp16, in the gradient and their squares in the KL.
    """
    adapter = AdapterConfig(rank=2) if kind == "lora" else None
    policy = tiny_policy(dtype=dtype, adapter=adapter, keep_base=adapter is None)
    method, plain = reinforce(policy, kl_weight=1.0), reinforce(policy)
    experience = method.collect(policy, round_of(policy, 6))
    with_kl, without = gradient(method, policy, experience).clone(), gradient(plain, policy, experience)
    rounding = {torch.float16: 2e-3, torch.float32: 0.0 if kind == "lora" else 1e-6}[dtype]
    assert relative([with_kl], [without]) <= rounding
    assert method.differentiate(policy, experience)["kl_to_base"] <= rounding**2
    moved(policy)
    assert method.differentiate(policy, experience)["kl_to_base"] > 1e-4
    assert "kl_to_base" not in plain.differentiate(policy, experience)


def test_no_weight_asks_for_no_base() -> None:
    """A policy without a copy of its base trains as before where the weight is 0."""
    policy: Any = GaussianPolicy(0.3)
    method = reinforce(policy, advantage="center")
    experience = method.collect(policy, round_of(policy, 10))
    assert "kl_to_base" not in method.differentiate(policy, experience)
