"""Small real models for tests."""

import dataclasses
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from benchmarks.recorder.models import sdxl, stable_diffusion
from memdiff.models.config import AdapterConfig
from memdiff.models.ddpm import DdpmPolicy
from memdiff.models.latent_files import parts_of
from memdiff.models.options import ModelOptions
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.scheduler import ddim_scheduler, sampling_chain
from memdiff.models.sdxl import SdxlPolicy
from memdiff.models.stable_diffusion import StableDiffusionPolicy

CPU = torch.device("cpu")


def tiny_unet(seed: int = 0, side: int = 8) -> UNet2DModel:
    """About 60 k parameters: two levels, attention in the middle and the lower one."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=side,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def tiny_policy(
    *,
    steps: int = 5,
    eta: float = 1.0,
    dtype: torch.dtype = torch.float32,
    adapter: AdapterConfig | None = None,
    seed: int = 0,
    checkpointing: bool = False,
    clip: bool = False,
    keep_base: bool = False,
    side: int = 8,
    channels_last: bool = False,
    device: torch.device = CPU,
    **sampler: Any,
) -> DdpmPolicy:
    """A DDPM with the linear schedule on the CPU."""
    scheduler = ddim_scheduler(DDPMScheduler(clip_sample=clip))
    options = SamplerConfig.model_validate({"steps": steps, "eta": eta, **sampler})
    schedule = sampling_chain(scheduler, options)
    how = "blocks" if checkpointing else "none"
    model_options = ModelOptions(
        dtype, adapter, activation_checkpointing=how, channels_last=channels_last, keep_base=keep_base
    )
    return DdpmPolicy(tiny_unet(seed, side), scheduler, schedule, model_options, device=device)


def tiny_stable_diffusion_pipeline(*, seed: int = 0, prediction_type: str = "epsilon") -> Any:
    """A whole StableDiffusionPipeline with random weights, without a safety checker."""
    torch.manual_seed(seed)
    return stable_diffusion(prediction_type)


def tiny_sdxl_pipeline(*, seed: int = 0, prediction_type: str = "epsilon", force_upcast: bool = True) -> Any:
    """A whole StableDiffusionXLPipeline with random weights."""
    torch.manual_seed(seed)
    return sdxl(prediction_type, force_upcast=force_upcast)


def latent_policy(kind: Any, parts: Any, sampler: SamplerConfig, *, device: torch.device = CPU, **options: Any) -> Any:
    """A policy of this kind; `options` are ModelOptions' fields and what the policy takes besides."""
    fields = {field.name for field in dataclasses.fields(ModelOptions)}
    model_options = ModelOptions(**{name: value for name, value in options.items() if name in fields})
    others = {name: value for name, value in options.items() if name not in fields}
    return kind(parts, sampler, model_options, device=device, **others)


def tiny_stable_diffusion(
    *,
    steps: int = 4,
    eta: float = 1.0,
    guidance: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    seed: int = 0,
    prediction_type: str = "epsilon",
    sampler: dict[str, Any] | None = None,
    **options: Any,
) -> StableDiffusionPolicy:
    """A policy around `tiny_stable_diffusion_pipeline`; `options` are ModelOptions' and LatentPolicy's.

    Encode prompts before use.
    """
    pipeline = tiny_stable_diffusion_pipeline(seed=seed, prediction_type=prediction_type)
    settings = SamplerConfig(steps=steps, eta=eta, guidance=guidance, **(sampler or {}))
    return latent_policy(StableDiffusionPolicy, parts_of(pipeline), settings, device=device, dtype=dtype, **options)


def tiny_sdxl(
    *,
    steps: int = 4,
    eta: float = 1.0,
    guidance: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    seed: int = 0,
    prediction_type: str = "epsilon",
    sampler: dict[str, Any] | None = None,
    **options: Any,
) -> SdxlPolicy:
    """A policy around `tiny_sdxl_pipeline`; as `tiny_stable_diffusion`."""
    pipeline = tiny_sdxl_pipeline(seed=seed, prediction_type=prediction_type)
    settings = SamplerConfig(steps=steps, eta=eta, guidance=guidance, **(sampler or {}))
    return latent_policy(SdxlPolicy, parts_of(pipeline), settings, device=device, dtype=dtype, **options)
