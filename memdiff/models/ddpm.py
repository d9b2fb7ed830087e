"""Unconditional diffusers pipelines around a UNet2DModel: google/ddpm-celebahq-256, google/ddpm-cifar10-32, ..."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel

from memdiff.chain.schedule import Schedule
from memdiff.counted import counted_as
from memdiff.errors import ConfigError
from memdiff.models import adapters
from memdiff.models.config import ActivationCheckpointing, AdapterConfig, SamplerConfig
from memdiff.models.denoiser import Denoiser
from memdiff.models.networks import class_of_part, own_memory, pipeline_folder, read_part, wrong_part
from memdiff.models.scheduler import ddim_scheduler, sampling_chain
from memdiff.models.source import no_pipeline
from memdiff.models.unet_policy import UnetPolicy
from memdiff.pieces import call_network, widen


class DdpmPolicy(UnetPolicy):
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
        activation_checkpointing: ActivationCheckpointing = "none",
        keep_base: bool = False,
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
        self._denoiser = Denoiser(
            unet,
            device=device,
            dtype=dtype,
            adapter=adapter,
            activation_checkpointing=activation_checkpointing,
            keep_base=keep_base,
        )
        self.unet = unet
        self.networks: Mapping[str, torch.nn.Module] = {"unet": unet}

    def encode(self, prompts: Sequence[str]) -> None:
        """Nothing: the model has no prompts."""

    def predict(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str] = ()) -> torch.Tensor:
        """The network's prediction: B C H W fp32."""
        del prompts
        timesteps_B = torch.tensor([self.schedule.timesteps[step] for step in steps]).to(self.device, non_blocking=True)
        self._denoiser.at_steps(steps)
        return call_network(lambda x: self._denoiser(x, timesteps_B), widen(x_t_BCHW), self.dtype)

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        """[-1, 1] -> [0, 1], clamped: B C H W fp32."""
        with counted_as("decoder"):
            return (widen(x_0_BCHW) / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """A pipeline that DDIMPipeline.from_pretrained loads; LoRA is merged, and lies beside it as `adapter/`.

        LoRA with a window of steps can't be merged: it is `adapter/` alone.
        """
        if self.adapter is not None:
            adapters.save(self.unet, self.adapter, folder / "adapter", weights, chain_steps=self.schedule.steps)
            if self.adapter.steps is not None:
                return
        unet = self._denoiser.copy_with(weights)
        if self.adapter is not None:
            unet = adapters.merged(unet)
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
    activation_checkpointing: ActivationCheckpointing = "none",
    keep_base: bool = False,
) -> DdpmPolicy:
    """From a pipeline folder or a hub id. Weights are read in fp32 and cast once.

    Raises ConfigError in one line where there is no such pipeline, or it is of another kind.
    """
    unet, scheduler = read_pipeline(source, revision=revision, variant=variant)
    schedule = sampling_chain(scheduler, sampler)
    return DdpmPolicy(
        unet,
        scheduler,
        schedule,
        device=device,
        dtype=dtype,
        adapter=adapter,
        activation_checkpointing=activation_checkpointing,
        keep_base=keep_base,
    )


def read_pipeline(source: str, *, revision: str | None, variant: str | None) -> tuple[UNet2DModel, DDIMScheduler]:
    """The UNet (fp32, on the host) and its scheduler as DDIM."""
    try:
        folder = pipeline_folder(source, revision=revision, variant=variant)
        found = class_of_part(DiffusionPipeline.load_config(folder), "unet")
        if found is None or found[1] != "UNet2DModel":
            raise wrong_part(source, "unet", "UNet2DModel", found)
        unet: Any = read_part(UNet2DModel, folder, "unet", source=source, variant=variant, dtype=torch.float32)
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, unet=unet, variant=variant)
    except (OSError, ValueError) as error:
        raise no_pipeline(source, error) from None
    own_memory(unet)
    return unet, ddim_scheduler(pipeline.scheduler)
