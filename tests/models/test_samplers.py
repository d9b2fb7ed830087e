"""What a chain says of itself, and what a saved model says of the chain that it was trained with."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, PNDMScheduler
from torch.testing import assert_close

from memdiff.models.config import AdapterConfig, DdpmConfig
from memdiff.models.ddpm import load_ddpm
from memdiff.models.options import ModelOptions
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.scheduler import chain_notes, sampling_chain
from tests.helpers.tiny import CPU, tiny_unet

quiet_libraries()


def scheduler_of(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **config)


def notes(steps: int, spacing: str) -> list[str]:
    scheduler, sampler = scheduler_of(timestep_spacing=spacing), SamplerConfig(steps=steps)
    return chain_notes(scheduler, sampler, sampling_chain(scheduler, sampler))


def test_trailing_timesteps_that_are_one_too_many_are_told() -> None:
    """Of 61 steps diffusers makes 62 timesteps and ends at -1; of 60 it doesn't, and leading never does."""
    theirs = scheduler_of(timestep_spacing="trailing")
    theirs.set_timesteps(61)
    assert len(theirs.timesteps) == 62 and int(theirs.timesteps[-1]) == -1
    (said,) = notes(61, "trailing")
    assert "makes 62 timesteps" in said and "has 61" in said
    assert not notes(60, "trailing") and not notes(61, "leading")


def test_steps_that_do_not_fit_together_are_told() -> None:
    """linspace at 10 steps leaves 0.102 where the last step is told 0.029, by alpha-bar itself; at 50 they agree."""
    (said,) = notes(10, "linspace")
    left, named = ((1 - scheduler_of().alphas_cumprod[timestep]) ** 0.5 for timestep in (111 - 100, 0))
    assert f"noise of std {float(left):.3f} where the next one is told {float(named):.3f}" in said
    assert float(left) == pytest.approx(0.102, abs=1e-3) and float(named) == pytest.approx(0.029, abs=1e-3)
    assert not any(notes(steps, spacing) for steps in (10, 25, 50) for spacing in ("leading", "trailing"))
    assert not notes(50, "linspace")


def test_a_saved_model_has_the_sampler_that_was_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose scheduler says nothing of clipping: not clipped here, nor by who loads the saved model."""
    monkeypatch.setenv("RANK", "1")
    DDPMPipeline(tiny_unet(), PNDMScheduler()).save_pretrained(tmp_path / "base")  # pyright: ignore[reportArgumentType]
    file = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    assert "clip_sample" not in json.loads(file.read_text())
    sampler = SamplerConfig(steps=61, eta=0, timestep_spacing="trailing")
    model = DdpmConfig(kind="ddpm", path=str(tmp_path / "base"))
    for adapter in (None, AdapterConfig(rank=1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            policy = load_ddpm(model, sampler, ModelOptions(adapter=adapter), device=CPU)
        assert not caplog.records  # another rank than the first
        out = tmp_path / ("full" if adapter is None else "lora")
        policy.save(out, {name: weight.detach() for name, weight in policy.trainable().items()})
        stored = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
        assert stored["clip_sample"] is False and stored["timestep_spacing"] == "trailing"
    theirs: Any = DDIMPipeline.from_pretrained(tmp_path / "full").scheduler
    assert_close(theirs.alphas_cumprod[list(policy.schedule.timesteps)], torch.tensor(policy.schedule.alpha_bar_t))
