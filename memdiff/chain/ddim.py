"""One DDIM step (Song et al. 2021, equation 12) and its density, in fp32 whatever the network runs in.

Shapes: B rows, C channels, H W pixels. Rows may stand at different steps.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.autograd import Function

from memdiff.chain.schedule import Schedule

LogProbReduction = Literal["mean", "sum"]


def predict_x0_and_eps(
    prediction_BCHW: torch.Tensor, x_t_BCHW: torch.Tensor, steps: Sequence[int], schedule: Schedule
) -> tuple[torch.Tensor, torch.Tensor]:
    """x0 (clipped where the scheduler clips) and eps from a network's prediction, all B C H W fp32.

    eps is not derived anew after clipping x0: diffusers' default (`use_clipped_model_output=False`).
    """
    signal = _rows([math.sqrt(schedule.alpha_bar_t[step]) for step in steps], x_t_BCHW)
    noise = _rows([math.sqrt(1 - schedule.alpha_bar_t[step]) for step in steps], x_t_BCHW)
    match schedule.prediction_type:
        case "epsilon":
            eps = prediction_BCHW
            x0 = (x_t_BCHW - noise * eps) / signal
        case "v_prediction":
            eps = signal * prediction_BCHW + noise * x_t_BCHW
            x0 = signal * x_t_BCHW - noise * prediction_BCHW
        case "sample":
            x0 = prediction_BCHW
            eps = (x_t_BCHW - signal * x0) / noise
    return (x0 if schedule.clip is None else _clip(x0, schedule.clip, straight=schedule.straight_through)), eps


def step_mean(
    prediction_BCHW: torch.Tensor, x_t_BCHW: torch.Tensor, steps: Sequence[int], schedule: Schedule
) -> torch.Tensor:
    """mu = sqrt(ab_s) x0 + sqrt(1 - ab_s - sigma^2) eps, B C H W fp32; x_s ~ N(mu, sigma^2)."""
    x0, eps = predict_x0_and_eps(prediction_BCHW, x_t_BCHW, steps, schedule)
    direction = [math.sqrt(max(1 - schedule.alpha_bar_s[step] - schedule.sigma[step] ** 2, 0.0)) for step in steps]
    signal = _rows([math.sqrt(schedule.alpha_bar_s[step]) for step in steps], x_t_BCHW)
    return signal * x0 + _rows(direction, x_t_BCHW) * eps


def step_sigma(steps: Sequence[int], schedule: Schedule, like_BCHW: torch.Tensor) -> torch.Tensor:
    """sigma of each row's step, B 1 1 1 fp32, on the device of `like_BCHW`."""
    return _rows([schedule.sigma[step] for step in steps], like_BCHW)


def log_prob(
    x_s_BCHW: torch.Tensor, mean_BCHW: torch.Tensor, sigma_B111: torch.Tensor, *, reduction: LogProbReduction
) -> torch.Tensor:
    """log N(x_s; mean, sigma^2) over C H W, in nats: B. `sum` is the density; `mean` divides it by C*H*W."""
    z = (x_s_BCHW - mean_BCHW) / sigma_B111
    elementwise = -0.5 * z.square() - sigma_B111.log() - 0.5 * math.log(2 * math.pi)
    flat = elementwise.flatten(start_dim=1)
    return flat.sum(dim=1) if reduction == "sum" else flat.mean(dim=1)


class _StraightThrough(Function):
    """Clamps to +- bound; the gradient passes as if it had not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bound: float) -> torch.Tensor:
        return x.clamp(-bound, bound)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _clip(x0_BCHW: torch.Tensor, bound: float, *, straight: bool) -> torch.Tensor:
    if straight:
        return _StraightThrough.apply(x0_BCHW, bound)  # pyright: ignore[reportReturnType]
    return x0_BCHW.clamp(-bound, bound)


def kl_of_means(
    mean_BCHW: torch.Tensor, base_BCHW: torch.Tensor, sigma_B111: torch.Tensor, *, reduction: LogProbReduction
) -> torch.Tensor:
    """KL(N(mean, sigma^2) || N(base, sigma^2)) = |mean - base|^2 / (2 sigma^2), in nats: B. Reduced as `log_prob`."""
    flat = (0.5 * ((mean_BCHW - base_BCHW) / sigma_B111).square()).flatten(start_dim=1)
    return flat.sum(dim=1) if reduction == "sum" else flat.mean(dim=1)


def _rows(values: Sequence[float], like_BCHW: torch.Tensor) -> torch.Tensor:
    """One number a row, shaped to broadcast over C H W."""
    dtype = torch.promote_types(like_BCHW.dtype, torch.float32)
    return torch.tensor(values, dtype=dtype).to(like_BCHW.device, non_blocking=True).view(-1, 1, 1, 1)
