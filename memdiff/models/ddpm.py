"""Unconditional diffusers pipelines around a UNet2DModel: google/ddpm-celebahq-256, google/ddpm-cifar10-32, ..."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel
from torch._subclasses.fake_tensor import unset_fake_temporarily

from memdiff.chain.schedule import Schedule
from memdiff.errors import ConfigError
from memdiff.models.architectures import DDPM_SCHEDULER_AS_DDIM, DDPMS
from memdiff.models.config import DdpmConfig, Size
from memdiff.models.denoiser import Denoiser
from memdiff.models.lora import inject
from memdiff.models.networks import class_of_part, own_memory, pipeline_folder, read_part, wrong_part
from memdiff.models.options import ModelOptions
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.scheduler import ddim_scheduler, sampling_chain, tell_of_chain
from memdiff.models.sizes import image_size
from memdiff.models.source import no_pipeline, read_config, read_scheduler
from memdiff.models.unet_policy import UnetPolicy
from memdiff.runtime.half_precision import call_network, widen
from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import HOST


class DdpmPolicy(UnetPolicy):
    """Fulfils memdiff.models.policy.Policy. Prompts are taken and not looked at: the model has none."""

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        schedule: Schedule,
        options: ModelOptions,
        *,
        device: torch.device,
        size: Size = (None, None),
    ) -> None:
        if unet.config["class_embed_type"] is not None or unet.config["num_class_embeds"] is not None:
            raise ConfigError("this UNet is conditioned on classes; model.kind ddpm takes unconditional ones only")
        if unet.config["out_channels"] != unet.config["in_channels"]:
            raise ConfigError(
                "this UNet predicts its variance too; model.kind ddpm takes out_channels equal to in_channels"
            )
        self.schedule, self.scheduler, self.device, self.dtype = schedule, scheduler, device, options.dtype
        # Each level but the last halves the sides, and its way back doubles them.
        halvings = len(unet.config["block_out_channels"]) - 1
        height, width = image_size(unet.config["sample_size"], size, unit=2**halvings)
        self.shape = (int(unet.config["in_channels"]), height, width)
        if size != (None, None):  # a saved pipeline makes images of this size
            unet.register_to_config(sample_size=height if height == width else (height, width))
        self.adapter = options.adapter
        self._denoiser = Denoiser(unet, options, device=device)
        self.unet = unet
        self.networks: Mapping[str, torch.nn.Module] = {"unet": unet}

    def encode(self, prompts: Sequence[str]) -> None:
        """Nothing: the model has no prompts."""

    def warn_of_cuts(self, prompts: Sequence[str]) -> None:
        """Nothing: the model has no prompts."""

    def predict(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str] = ()) -> torch.Tensor:
        """The network's prediction: B C H W fp32."""
        del prompts
        timesteps_B = torch.tensor([self.schedule.timesteps[step] for step in steps]).to(self.device, non_blocking=True)
        self._denoiser.at_steps(steps)
        return call_network(lambda x: self._denoiser(x, timesteps_B), widen(x_t_BCHW), self.dtype)

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        """[-1, 1] -> [0, 1], clamped: B C H W fp32."""
        with memory_tag("decoder"):
            return (widen(x_0_BCHW) / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """A pipeline that DDIMPipeline.from_pretrained loads; LoRA is merged, and lies beside it as `adapter/`.

        LoRA with a window of steps can't be merged: it is `adapter/` alone.
        """
        if self.adapter is not None:
            inject.save(self.unet, self.adapter, folder / "adapter", weights, chain_steps=self.schedule.steps)
            if self.adapter.steps is not None:
                return
        unet = self._denoiser.copy_with(weights)
        if self.adapter is not None:
            unet = inject.merged(unet)
        pipeline: Any = DDIMPipeline(unet=unet, scheduler=self.scheduler)
        pipeline.save_pretrained(str(folder), safe_serialization=True)


def load_ddpm(model: DdpmConfig, sampler: SamplerConfig, options: ModelOptions, *, device: torch.device) -> DdpmPolicy:
    """From a pipeline folder or a hub id. Weights are read in fp32 and cast once.

    Raises ConfigError in one line where there is no such pipeline, or it is of another kind.
    """
    unet, scheduler = read_pipeline(model.path, revision=model.revision, variant=model.variant)
    if device == HOST:  # elsewhere they are copied on their way
        own_memory(unet)
    schedule = sampling_chain(scheduler, sampler)
    tell_of_chain(scheduler, sampler, schedule)
    return DdpmPolicy(unet, scheduler, schedule, options, device=device, size=model.size)


def skeleton_ddpm(
    model: DdpmConfig, sampler: SamplerConfig, options: ModelOptions, *, device: torch.device
) -> DdpmPolicy:
    """The same without its weights. Under fake tensors nothing is allocated.

    Raises ConfigError where the architecture is neither written down nor to be read.
    """
    written = DDPMS.get(model.path)
    with unset_fake_temporarily():
        scheduler = DDIMScheduler(**DDPM_SCHEDULER_AS_DDIM) if written else read_scheduler(model.path, model.revision)
    config = written or read_config(UNet2DModel, model.path, part="unet", revision=model.revision)
    schedule = sampling_chain(scheduler, sampler)
    return DdpmPolicy(UNet2DModel(**config), scheduler, schedule, options, device=device, size=model.size)


def read_pipeline(source: str, *, revision: str | None, variant: str | None) -> tuple[UNet2DModel, DDIMScheduler]:
    """The UNet (fp32, on the host) and its scheduler as DDIM."""
    try:
        folder = pipeline_folder(source, revision=revision, variant=variant)
        unet_class = class_of_part(DiffusionPipeline.load_config(folder), "unet")
        if unet_class is None or unet_class[1] != "UNet2DModel":
            raise wrong_part(source, "unet", "UNet2DModel", unet_class)
        unet: Any = read_part(UNet2DModel, folder, "unet", source=source, variant=variant, dtype=torch.float32)
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, unet=unet)
    except (OSError, ValueError) as error:
        raise no_pipeline(source, error) from None
    return unet, ddim_scheduler(pipeline.scheduler)
