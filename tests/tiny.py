"""Small real models for tests."""

import torch
from diffusers import DDPMScheduler, UNet2DModel

from memdiff.chain.schedule import make_schedule
from memdiff.models.config import AdapterConfig, SamplerConfig
from memdiff.models.ddpm import DdpmPolicy
from memdiff.models.scheduler import ddim_scheduler, noise_schedule

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
    device: torch.device = CPU,
    **sampler: float,
) -> DdpmPolicy:
    """A DDPM with the linear schedule on the CPU."""
    scheduler = ddim_scheduler(DDPMScheduler(clip_sample=clip))
    options = SamplerConfig.model_validate({"steps": steps, "eta": eta, **sampler})
    schedule = make_schedule(
        noise_schedule(scheduler), steps=options.steps, eta=options.eta, sigma_floor=options.sigma_floor
    )
    return DdpmPolicy(
        tiny_unet(seed),
        scheduler,
        schedule,
        device=device,
        dtype=dtype,
        adapter=adapter,
        activation_checkpointing=checkpointing,
    )
