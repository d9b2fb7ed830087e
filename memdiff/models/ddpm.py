"""Unconditional diffusers pipelines around a UNet2DModel: google/ddpm-celebahq-256, google/ddpm-cifar10-32, ..."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel

from memdiff.chain.ddim import step_mean
from memdiff.chain.schedule import Schedule, make_schedule
from memdiff.errors import ConfigError
from memdiff.models import adapters
from memdiff.models.config import AdapterConfig, SamplerConfig
from memdiff.models.scheduler import ddim_scheduler, noise_schedule
from memdiff.pieces import call_network


class DdpmPolicy:
    """Fulfils memdiff.models.policy.Policy. Prompts are taken and not looked at: the model has none."""

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        schedule: Schedule,
        *,
        device: torch.device,
        dtype: torch.dtype,
        adapter: AdapterConfig | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        if unet.config["class_embed_type"] is not None or unet.config["num_class_embeds"] is not None:
            raise ConfigError("this UNet is conditioned on classes; model.kind ddpm takes unconditional ones only")
        if unet.config["out_channels"] != unet.config["in_channels"]:
            raise ConfigError(
                "this UNet predicts its variance too; model.kind ddpm takes out_channels equal to in_channels"
            )
        self.schedule, self.scheduler, self.device, self.dtype = schedule, scheduler, device, dtype
        side = unet.config["sample_size"]
        height, width = side if isinstance(side, list | tuple) else (side, side)
        self.shape = (int(unet.config["in_channels"]), int(height), int(width))
        self.adapter = adapter
        unet.requires_grad_(adapter is None)
        if adapter is not None:
            adapters.inject(unet, adapter)
        torch.nn.Module.to(unet, device=device, dtype=dtype)
        self.unet = unet.eval()
        if activation_checkpointing:
            # diffusers recomputes block by block, non-reentrant, as torch.autograd.grad needs it; eval mode is enough.
            self.unet.enable_gradient_checkpointing()

    def mean(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str] = ()) -> torch.Tensor:
        """Mean of p(x_s | x_t): B C H W fp32."""
        del prompts
        timesteps_B = torch.tensor([self.schedule.timesteps[step] for step in steps]).to(self.device, non_blocking=True)
        x_t_BCHW = x_t_BCHW.float()
        prediction_BCHW = call_network(lambda x: self.unet(x, timesteps_B).sample, x_t_BCHW, self.dtype)
        return step_mean(prediction_BCHW, x_t_BCHW, steps, self.schedule)

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        """[-1, 1] -> [0, 1], clamped: B C H W fp32."""
        return (x_0_BCHW.float() / 2 + 0.5).clamp(0, 1)

    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        """All of the UNet, or the LoRA."""
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """A pipeline that DDIMPipeline.from_pretrained loads; LoRA is merged, and lies beside it as `adapter/`."""
        unet = copy_with(self.unet, weights)
        if self.adapter is not None:
            adapters.save(unet, self.adapter, folder / "adapter")
            unet = adapters.merged(unet)
        unet.disable_gradient_checkpointing()
        pipeline: Any = DDIMPipeline(unet=unet, scheduler=self.scheduler)
        pipeline.save_pretrained(str(folder), safe_serialization=True)


def load_ddpm(
    source: str,
    sampler: SamplerConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    variant: str | None = None,
    adapter: AdapterConfig | None = None,
    activation_checkpointing: bool = False,
) -> DdpmPolicy:
    """From a pipeline folder or a hub id. Weights are read in fp32 and cast once.

    Raises ConfigError in one line where there is no such pipeline, or it is of another kind.
    """
    unet, scheduler = read_pipeline(source, revision=revision, variant=variant)
    schedule = make_schedule(
        noise_schedule(scheduler),
        steps=sampler.steps,
        eta=sampler.eta,
        spacing=sampler.timestep_spacing,
        sigma_floor=sampler.sigma_floor,
    )
    if sampler.timestep_spacing is not None:
        scheduler.register_to_config(timestep_spacing=sampler.timestep_spacing)
    return DdpmPolicy(
        unet,
        scheduler,
        schedule,
        device=device,
        dtype=dtype,
        adapter=adapter,
        activation_checkpointing=activation_checkpointing,
    )


def read_pipeline(source: str, *, revision: str | None, variant: str | None) -> tuple[UNet2DModel, DDIMScheduler]:
    """The UNet (fp32, on the host) and its scheduler as DDIM."""
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            source, revision=revision, variant=variant, dtype=torch.float32, low_cpu_mem_usage=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model.path {source}: no pipeline could be loaded ({reason[:200]}). Give a diffusers pipeline folder, or "
            f"fetch a hub id first: hf download {source}"
        ) from None
    unet = pipeline.components.get("unet")
    if not isinstance(unet, UNet2DModel):
        raise ConfigError(f"model.path {source}: kind ddpm needs a UNet2DModel, got {type(unet).__name__}")
    return unet, ddim_scheduler(pipeline.scheduler)


def copy_with(unet: UNet2DModel, weights: Mapping[str, torch.Tensor]) -> UNet2DModel:
    """A UNet on the host in fp32 whose trained parameters are `weights`."""
    twin = copy.deepcopy(unet)
    torch.nn.Module.to(twin, device="cpu", dtype=torch.float32)
    parameters = dict(twin.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    return twin
