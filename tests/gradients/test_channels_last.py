"""Images that lie channels last: norm and SiLU by one operator, the same gradients, the bytes that a plan sees."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from memdiff.models.config import AdapterConfig
from memdiff.models.denoiser import Denoiser
from memdiff.models.low_memory.channels_last import (
    LAST,
    NormLast,
    NormSiluLast,
    group_norm_silu,
    group_norm_silu_backward,
    lies_last,
)
from memdiff.models.options import ModelOptions
from memdiff.planner.fake_tensors import GPU, fake_gpu
from memdiff.planner.ledger import Ledger
from tests.helpers.tiny import CPU, tiny_policy, tiny_stable_diffusion, tiny_unet


def norm_of(channels: int, groups: int, dtype: torch.dtype, generator: torch.Generator) -> torch.nn.GroupNorm:
    norm = torch.nn.GroupNorm(groups, channels).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
    return norm


def torch_of(x: torch.Tensor, norm: torch.nn.GroupNorm, with_silu: bool) -> torch.Tensor:
    """What the operator computes, by torch's own two."""
    y = torch.nn.functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return torch.nn.functional.silu(y) if with_silu else y


@pytest.mark.parametrize("with_silu", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_operator_is_torchs_two(
    with_silu: bool, dtype: torch.dtype, tolerance: float, generator: torch.Generator
) -> None:
    """Values and all three gradients beside plain autograd's; the mean is three times the spread."""
    norm = norm_of(12, 4, dtype, generator)
    x = (torch.randn(3, 12, 5, 7, generator=generator) + 3).to(dtype).contiguous(memory_format=LAST).requires_grad_()
    d_y = torch.randn(3, 12, 5, 7, generator=generator).to(dtype)
    y, _, _ = group_norm_silu(x, norm.weight, norm.bias, 4, norm.eps, with_silu)
    truth = torch_of(x, norm, with_silu)
    leaves = (x, norm.weight, norm.bias)
    got, expected = (torch.autograd.grad(one, leaves, d_y) for one in (y, truth))
    assert y.is_contiguous(memory_format=LAST) and got[0].is_contiguous(memory_format=LAST)
    for mine, theirs in zip((y, *got), (truth, *expected), strict=True):
        assert float((mine - theirs).detach().norm() / theirs.detach().norm()) <= tolerance


def test_half_precision_is_as_near_to_fp64_as_torchs_own(generator: torch.Generator) -> None:
    """fp16, the mean ten times the spread: the error of value and d x is at most twice that of torch's own."""
    norm = norm_of(16, 4, torch.float16, generator)
    exact = norm_of(16, 4, torch.float64, generator)
    exact.load_state_dict({name: value.double() for name, value in norm.state_dict().items()})
    x = (torch.randn(2, 16, 8, 8, generator=generator) + 10).half().contiguous(memory_format=LAST).requires_grad_()
    wide = x.detach().double().requires_grad_()
    d_y = torch.randn(2, 16, 8, 8, generator=generator).half()
    results = [group_norm_silu(x, norm.weight, norm.bias, 4, norm.eps, True)[0], torch_of(x, norm, True)]
    truth = torch_of(wide, exact, True)
    true_d_x = torch.autograd.grad(truth, wide, d_y.double())[0]
    value_errors = [float((y.double() - truth).detach().norm()) for y in results]
    slope_errors = [float((torch.autograd.grad(y, x, d_y)[0].double() - true_d_x).norm()) for y in results]
    assert value_errors[0] <= 2 * value_errors[1] and slope_errors[0] <= 2 * slope_errors[1]


@pytest.mark.parametrize("operator", ["forward", "backward"])
def test_the_fake_says_what_the_operator_returns(operator: str, generator: torch.Generator) -> None:
    """torch's own check: schema, shapes, strides and dtypes of fake and real results, the autograd registration."""
    norm = norm_of(8, 2, torch.float16, generator)
    x = torch.randn(2, 8, 3, 4, generator=generator).half().contiguous(memory_format=LAST)
    weight, bias = norm.weight.detach(), norm.bias.detach()
    tests = ("test_schema", "test_faketensor")
    if operator == "forward":
        torch.library.opcheck(group_norm_silu, (x, weight, bias, 2, 1e-5, True), test_utils=tests)
    else:
        _, mean_BG, rstd_BG = group_norm_silu(x, weight, bias, 2, 1e-5, True)
        arguments = (x.clone(), x, weight, bias, mean_BG, rstd_BG, True)
        torch.library.opcheck(group_norm_silu_backward, arguments, test_utils=tests)


def call(policy: Any, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A mean and the gradients of its sum with respect to what is trained and to x."""
    x = x_BCHW.detach().requires_grad_()
    mean = policy.mean(x, [1] * len(x), ["a"] * len(x))
    return mean, list(torch.autograd.grad(mean.square().sum(), [x, *policy.trainable().values()]))


@pytest.mark.parametrize("kind", ["lora", "full", "text"])
def test_a_unet_computes_the_same_and_stays_channels_last(kind: str, generator: torch.Generator) -> None:
    """fp32, gradients to 1e-5 relative. Every norm of images sees them channels last; those before a SiLU have it."""
    make: Any = tiny_stable_diffusion if kind == "text" else tiny_policy
    policies = [
        make(adapter=None if kind == "full" else AdapterConfig(rank=2), **options)
        for options in ({}, {"channels_last": True})
    ]
    layouts: list[bool] = []
    for module in policies[1].networks["unet"].modules():
        if isinstance(module, NormLast):
            module.register_forward_pre_hook(
                lambda _, inputs: layouts.append(inputs[0].ndim != 4 or lies_last(inputs[0]))
            )
    x_BCHW = torch.randn(2, *policies[0].shape, generator=generator)
    results = []
    for policy in policies:
        policy.encode(["a", ""])
        for index, parameter in enumerate(policy.trainable().values()):
            if kind != "full":
                with torch.no_grad():
                    values = torch.Generator().manual_seed(index)
                    parameter.copy_(torch.randn(parameter.shape, generator=values) / 10)
        results.append(call(policy, x_BCHW))
    assert layouts and all(layouts)
    assert any(type(module) is NormSiluLast for module in policies[1].networks["unet"].modules())
    (mean, gradients), (last_mean, last_gradients) = results
    whole, last = (torch.cat([gradient.flatten() for gradient in some]) for some in (gradients, last_gradients))
    assert float((last_mean - mean).detach().norm() / mean.detach().norm()) <= 1e-5
    assert float((last - whole).norm() / whole.norm()) <= 1e-5


def test_plan_and_run_count_the_same_bytes() -> None:
    """Live bytes at the peak of a call and its pull, on the planner's fake tensors and on real ones."""
    peaks = []
    for device, tensors in ((GPU, fake_gpu()), (CPU, nullcontext())):
        with tensors:
            unet = tiny_unet(side=16)
            denoiser = Denoiser(unet, ModelOptions(adapter=AdapterConfig(rank=2), channels_last=True), device=device)
            x = torch.zeros(3, 1, 16, 16).to(device).requires_grad_()
            timesteps = torch.zeros(3, dtype=torch.int64).to(device)
            with Ledger(device=device if device == GPU else None) as ledger:
                y = denoiser(x, timesteps)
                torch.autograd.grad(y, [x, *denoiser.trainable().values()], y.detach())
            peaks.append(ledger.peak_bytes)
    assert peaks[0] == peaks[1]
