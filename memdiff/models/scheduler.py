"""A pipeline's scheduler, whatever its class, as DDIM; and its noise schedule as plain numbers."""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers import DDIMScheduler
from torch._subclasses.fake_tensor import unset_fake_temporarily

from memdiff.chain.schedule import NoiseSchedule, Schedule, make_schedule
from memdiff.errors import ConfigError
from memdiff.models.sampler_config import SamplerConfig

_log = logging.getLogger(__name__)

MOST_APART = 0.02  # noise that a step leaves, and that the next one is told of; images have a std of about 0.5 to 1
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")


def ddim_scheduler(scheduler: Any) -> DDIMScheduler:
    """DDIMScheduler with the same betas, timesteps and prediction type.

    Schedulers that know no clipping (PNDM, Euler: Stable Diffusion's hub defaults) must not gain it: DDIMScheduler's
    default is to clip. A DDPM's learned or large variance has no counterpart: DDIM's sigma depends on eta alone.
    Raises ConfigError for schedulers without betas, flow matching among them: DDIM would take its own defaults.
    """
    config = dict(scheduler.config)
    _refuse_without_betas(type(scheduler).__name__, config)
    config.pop("_use_default_values", None)  # from_config would put DDIM's own defaults in the place of these
    if "clip_sample" not in config:
        config["clip_sample"] = False
    try:
        return DDIMScheduler.from_config(config)  # pyright: ignore[reportReturnType]
    except NotImplementedError as error:
        raise ConfigError(f"the scheduler's noise schedule has no DDIM counterpart in diffusers: {error}") from None


def _refuse_without_betas(name: str, config: Mapping[str, Any]) -> None:
    """By what its config has: KarrasVe, EDM, consistency and flow-matching schedulers have no betas."""
    chosen = {
        key: config.get(key) for key in ("timestep_type", "use_flow_sigmas", "prediction_type", "snr_shift_scale")
    }
    if not {"beta_start", "beta_end", "beta_schedule"} <= config.keys():
        reason = "has no betas"
    elif chosen["timestep_type"] not in (None, "discrete"):
        reason = f"has timestep_type {chosen['timestep_type']}"
    elif chosen["use_flow_sigmas"] or chosen["prediction_type"] == "flow_prediction":
        reason = "is one of flow matching"
    elif chosen["snr_shift_scale"] not in (None, 1):
        reason = f"shifts its noise schedule (snr_shift_scale {chosen['snr_shift_scale']})"
    else:
        return
    raise ConfigError(
        f"the pipeline's scheduler {name} {reason}; memdiff samples with DDIM on a discrete schedule of betas, so it "
        "takes models made for DDPM, DDIM, PNDM, Euler, DPM-Solver and others of that kind"
    )


def noise_schedule(scheduler: DDIMScheduler) -> NoiseSchedule:
    """What `chain` needs. Raises ConfigError where the scheduler asks for something that DDIM chains don't do."""
    config = scheduler.config
    if config["thresholding"]:
        raise ConfigError(
            "the scheduler's dynamic thresholding is not supported; set thresholding to false in its config"
        )
    if config["prediction_type"] not in PREDICTION_TYPES:
        raise ConfigError(f"prediction_type must be one of {PREDICTION_TYPES}, got {config['prediction_type']!r}")
    if config["timestep_spacing"] not in SPACINGS:
        raise ConfigError(f"timestep_spacing must be one of {SPACINGS}, got {config['timestep_spacing']!r}")
    with unset_fake_temporarily():  # a plan calls this under fake tensors, and these numbers are real
        alpha_bar = tuple(float(value) for value in scheduler.alphas_cumprod)
        final_alpha_bar = float(scheduler.final_alpha_cumprod)
    return NoiseSchedule(
        alpha_bar=alpha_bar,
        final_alpha_bar=final_alpha_bar,
        prediction_type=config["prediction_type"],
        clip=float(config["clip_sample_range"]) if config["clip_sample"] else None,
        spacing=config["timestep_spacing"],
        offset=int(config["steps_offset"]),
    )


def tell_of_chain(scheduler: DDIMScheduler, sampler: SamplerConfig, schedule: Schedule) -> None:
    """A line in the log, from the first rank, where a chain is not what its spacing says."""
    if os.environ.get("RANK", "0") == "0":
        for note in chain_notes(scheduler, sampler, schedule):
            _log.warning("%s", note)


def chain_notes(scheduler: DDIMScheduler, sampler: SamplerConfig, schedule: Schedule) -> list[str]:
    """What a person should know of the chain: where diffusers' own differs, or where its steps don't fit together."""
    if sampler.sub_schedule is not None:
        return []
    spacing, steps, notes = scheduler.config["timestep_spacing"], sampler.steps, []
    total = int(scheduler.config["num_train_timesteps"])
    theirs = len(np.arange(total, 0, -total / steps)) if spacing == "trailing" else steps
    if theirs != steps:
        notes.append(
            f"sampler.steps {steps}: diffusers' trailing spacing makes {theirs} timesteps of it, the last of them -1; "
            f"memdiff's chain has {steps}, without that one"
        )
    left = [math.sqrt(1 - alpha_bar) for alpha_bar in schedule.alpha_bar_s[:-1]]
    said = [math.sqrt(1 - alpha_bar) for alpha_bar in schedule.alpha_bar_t[1:]]
    apart = max(zip(left, said, strict=True), key=lambda pair: abs(pair[0] - pair[1]), default=(0.0, 0.0))
    if abs(apart[0] - apart[1]) > MOST_APART:
        notes.append(
            f"timestep spacing {spacing} at {steps} steps: a step leaves noise of std {apart[0]:.3f} where the next "
            f"one is told {apart[1]:.3f}, as in diffusers' DDIM; sampler.timestep_spacing: leading or trailing has no "
            "such gap, nor has linspace at 50 steps"
        )
    return notes


def sampling_chain(scheduler: DDIMScheduler, sampler: SamplerConfig) -> Schedule:
    """The chain that a recipe's `sampler` describes, on the scheduler's noise schedule.

    A spacing that the recipe chooses is written into the scheduler's config, so that a saved pipeline has it too.
    """
    schedule = make_schedule(
        noise_schedule(scheduler),
        steps=sampler.steps,
        eta=sampler.eta,
        spacing=sampler.timestep_spacing,
        sub_schedule=sampler.sub_schedule,
        sigma_floor=sampler.sigma_floor,
        final_std=sampler.final_std,
        straight_through=sampler.clip_gradient == "straight_through",
    )
    if sampler.timestep_spacing is not None:
        scheduler.register_to_config(timestep_spacing=sampler.timestep_spacing)
    return schedule
