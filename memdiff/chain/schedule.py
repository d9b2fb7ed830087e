"""The steps of a sampling chain: which timesteps, how noisy before and after, the std of each step.

Symbols: T training timesteps, K chain steps, ab = cumulative product of alphas, t -> s one step (s < t).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from memdiff.errors import ConfigError

Spacing = Literal["leading", "linspace", "trailing"]
SubSchedule = Literal["quadratic", "linear"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class NoiseSchedule:
    """What a pipeline was trained with."""

    alpha_bar: tuple[float, ...]  # T values, the cumulative product of 1 - beta
    final_alpha_bar: float  # after the last step: 1, or alpha_bar[0] where the scheduler's set_alpha_to_one is false
    prediction_type: PredictionType = "epsilon"
    clip: float | None = None  # predicted x0 is clipped to +- this
    spacing: Spacing = "leading"
    offset: int = 0  # added to the timesteps of `leading`


@dataclass(frozen=True)
class Schedule:
    """K steps of DDIM, step 0 the noisiest. Plain numbers in double precision; tensors are made where used.

    `sigma[k]` is the std of p(x_s | x_t); a step where it is 0 has no density.
    """

    timesteps: tuple[int, ...]
    alpha_bar_t: tuple[float, ...]
    alpha_bar_s: tuple[float, ...]
    sigma: tuple[float, ...]
    prediction_type: PredictionType
    clip: float | None
    straight_through: bool = False  # clipped pixels of x0 pass their gradient on; else it is zero, as it truly is

    @property
    def steps(self) -> int:
        """How many steps the chain has, K."""
        return len(self.timesteps)

    @property
    def steps_with_density(self) -> tuple[int, ...]:
        """The steps that a policy gradient can use."""
        return tuple(step for step, sigma in enumerate(self.sigma) if sigma > 0)


def ddim_sigma(alpha_bar_t: float, alpha_bar_s: float, *, eta: float) -> float:
    """Std of p(x_s | x_t). Song et al. 2021 (DDIM), equation 16.

    Zero at eta=0 or alpha_bar_s=1: such a step has no density, so callers leave it out of the policy gradient.
    """
    variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
    return eta * math.sqrt(max(variance, 0.0))


def chain_timesteps(training_timesteps: int, steps: int, *, spacing: Spacing, offset: int) -> tuple[int, ...]:
    """The K timesteps of a chain, descending, exactly as diffusers' DDIMScheduler.set_timesteps has them."""
    if not 1 <= steps <= training_timesteps:
        raise ConfigError(f"sampler.steps must be 1..{training_timesteps} for this model, got {steps}")
    match spacing:
        case "leading":
            timesteps = (np.arange(steps) * (training_timesteps // steps)).round()[::-1].astype(np.int64) + offset
        case "linspace":
            timesteps = np.linspace(0, training_timesteps - 1, steps).round()[::-1].astype(np.int64)
        case "trailing":
            ratio = training_timesteps / steps
            # Rounding gives arange one element too many for some K (61 of 1000), which diffusers keeps: timestep -1.
            timesteps = np.round(np.arange(training_timesteps, 0, -ratio)).astype(np.int64)[:steps] - 1
    if timesteps[0] >= training_timesteps:
        raise ConfigError(
            f"sampler.steps {steps} with the scheduler's steps_offset {offset} asks for timestep {timesteps[0]} of "
            f"{training_timesteps}; use fewer steps or sampler.timestep_spacing: trailing"
        )
    return tuple(int(timestep) for timestep in timesteps)


def sub_schedule_timesteps(training_timesteps: int, steps: int, kind: SubSchedule) -> tuple[int, ...]:
    """The K timesteps of a shortcut, descending to 0 (Kong and Ping 2021, FastDPM's STEP; taken up by SFT-PG).

    linear: floor(i (T - 1) / (K - 1)); quadratic: floor((i sqrt(0.8 T) / (K - 1))^2), which is denser near the image.
    """
    if steps < 2:
        raise ConfigError(f"sampler.sub_schedule needs sampler.steps of at least 2, got {steps}")
    if kind == "linear":
        timesteps = np.floor(np.arange(steps) * ((training_timesteps - 1) / (steps - 1)))
    else:
        timesteps = np.floor(np.linspace(0, math.sqrt(0.8 * training_timesteps), steps) ** 2)
    chosen = tuple(int(timestep) for timestep in timesteps[::-1])
    if len(set(chosen)) < steps:
        raise ConfigError(
            f"sampler.sub_schedule {kind} of {steps} steps takes a timestep of {training_timesteps} twice; "
            "use fewer sampler.steps, or sampler.timestep_spacing in its place"
        )
    return chosen


def make_schedule(
    noise: NoiseSchedule,
    *,
    steps: int,
    eta: float,
    spacing: Spacing | None = None,
    sub_schedule: SubSchedule | None = None,
    sigma_floor: float = 0.0,
    final_std: float = 0.0,
    straight_through: bool = False,
) -> Schedule:
    """The chain of K = `steps` steps. As in diffusers, a step goes from t to s = t - T // K, whatever the spacing.

    With a `sub_schedule` each step goes to the next timestep of it instead. `sigma_floor` is the smallest std of a
    step, for sampling and density alike; above 0 the last step has one too. `final_std` is that of the last step alone.
    """
    total = len(noise.alpha_bar)
    if sub_schedule is None:
        timesteps = chain_timesteps(total, steps, spacing=spacing or noise.spacing, offset=noise.offset)
        after = [timestep - total // steps for timestep in timesteps]
    else:
        timesteps = sub_schedule_timesteps(total, steps, sub_schedule)
        after = [*timesteps[1:], -1]
    alpha_bar_t = [noise.alpha_bar[timestep] for timestep in timesteps]
    if noise.prediction_type == "epsilon" and min(alpha_bar_t) == 0:
        raise ConfigError(
            "this schedule starts without any signal (zero terminal SNR), where eps says nothing about x0"
        )
    alpha_bar_s = [noise.alpha_bar[s] if s >= 0 else noise.final_alpha_bar for s in after]
    sigma = [max(ddim_sigma(t, s, eta=eta), sigma_floor) for t, s in zip(alpha_bar_t, alpha_bar_s, strict=True)]
    sigma[-1] = max(sigma[-1], final_std)
    return Schedule(
        timesteps,
        tuple(alpha_bar_t),
        tuple(alpha_bar_s),
        tuple(sigma),
        noise.prediction_type,
        noise.clip,
        straight_through,
    )


def step_weights(schedule: Schedule, kind: Literal["uniform", "balanced"] | Sequence[float]) -> tuple[float, ...]:
    """One weight a step, 0 where there is no density, mean 1 over the others (given numbers are taken as they are).

    `balanced`: d log p / d prediction has the size |d mean / d prediction| / sigma; its inverse gives every step the
    same say. For eps the last steps, which decide fine detail only, otherwise weigh 5 to 15 times as much as the first.
    """
    usable = schedule.steps_with_density
    match kind:
        case "uniform":
            weights = dict.fromkeys(usable, 1.0)
        case "balanced":
            weights = {step: schedule.sigma[step] / mean_per_prediction(schedule, step) for step in usable}
        case _:
            return tuple(float(kind[step]) if step in usable else 0.0 for step in range(schedule.steps))
    scale = len(weights) / sum(weights.values()) if weights else 1.0
    return tuple(weights.get(step, 0.0) * scale for step in range(schedule.steps))


def weighted_steps(schedule: Schedule, kind: Literal["uniform", "balanced"] | Sequence[float]) -> tuple[int, ...]:
    """The steps that a policy gradient is taken at: those with a density, without those that are given the weight 0."""
    return tuple(step for step, weight in enumerate(step_weights(schedule, kind)) if weight)


def mean_per_prediction(schedule: Schedule, step: int) -> float:
    """|d mean / d prediction| of one step without clipping, in the network's own parameterisation."""
    ab_t, ab_s, sigma = schedule.alpha_bar_t[step], schedule.alpha_bar_s[step], schedule.sigma[step]
    direction, signal = math.sqrt(max(1 - ab_s - sigma**2, 0.0)), math.sqrt(ab_s)
    match schedule.prediction_type:
        case "epsilon":  # x0 = (x_t - sqrt(1 - ab_t) eps) / sqrt(ab_t)
            slope = direction - signal * math.sqrt((1 - ab_t) / ab_t)
        case "v_prediction":  # eps = sqrt(ab_t) v + ..., x0 = ... - sqrt(1 - ab_t) v
            slope = direction * math.sqrt(ab_t) - signal * math.sqrt(1 - ab_t)
        case "sample":  # eps = (x_t - sqrt(ab_t) x0) / sqrt(1 - ab_t)
            slope = signal - direction * math.sqrt(ab_t / (1 - ab_t))
    return abs(slope)
