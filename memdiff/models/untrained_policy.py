"""A recipe's policy without its weights, for plans: the counterpart of `load_policy`.

Architectures of well-known models are written down; for others the configs of the folder or hub id are read, never the
weights. Under fake tensors nothing is allocated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import CLIPTextConfig

from memdiff.models.architectures import (
    CELEBAHQ_256,
    CIFAR10_32,
    DDPM_SCHEDULER,
    SDXL_BASE,
    STABLE_DIFFUSION_1,
    LatentArchitecture,
)
from memdiff.models.config import (
    ActivationCheckpointing,
    AdapterConfig,
    DdpmConfig,
    EmbeddedConfig,
    ModelConfig,
    SamplerConfig,
    SdxlConfig,
    StableDiffusionConfig,
    VaeCheckpointing,
)
from memdiff.models.ddpm import DdpmPolicy
from memdiff.models.latent_files import FP16_VAE, choose_vae_dtype
from memdiff.models.load import check_kind, embedded_source
from memdiff.models.policy import Policy
from memdiff.models.precision import DTYPES
from memdiff.models.scheduler import ddim_scheduler, sampling_chain
from memdiff.models.sdxl import SdxlPolicy
from memdiff.models.source import no_pipeline
from memdiff.models.stable_diffusion import StableDiffusionPolicy
from memdiff.models.untrained import untrained_parts


@dataclass(frozen=True)
class DdpmArchitecture:
    """Constructor arguments of an unconditional pipeline."""

    unet: Mapping[str, Any]
    scheduler: Callable[[], DDIMScheduler]


def _written_ddpm(unet: Mapping[str, Any]) -> DdpmArchitecture:
    return DdpmArchitecture(unet, lambda: DDIMScheduler(**DDPM_SCHEDULER_AS_DDIM))


DDPM_SCHEDULER_AS_DDIM = {key: value for key, value in DDPM_SCHEDULER.items() if key != "variance_type"}
WRITTEN: Mapping[str, DdpmArchitecture | LatentArchitecture] = {
    "google/ddpm-celebahq-256": _written_ddpm(CELEBAHQ_256),
    "google/ddpm-cifar10-32": _written_ddpm(CIFAR10_32),
    "CompVis/stable-diffusion-v1-4": STABLE_DIFFUSION_1,
    "runwayml/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
    "stabilityai/stable-diffusion-xl-base-1.0": SDXL_BASE,
}


def untrained_policy(
    model: ModelConfig,
    sampler: SamplerConfig,
    *,
    device: torch.device,
    precision: str,
    adapter: AdapterConfig | None = None,
    activation_checkpointing: ActivationCheckpointing = "none",
    keep_base: bool = False,
    guidance_in_two: bool = False,
    vae_checkpointing: VaeCheckpointing = "none",
) -> Policy:
    """Raises ConfigError in one line where the architecture is neither written down nor to be read."""
    if isinstance(model, EmbeddedConfig):
        model = embedded_source(model)
    dtype = DTYPES[precision]
    architecture = WRITTEN.get(model.path) or read_architecture(model)
    match model:
        case DdpmConfig():
            assert isinstance(architecture, DdpmArchitecture)
            with unset_fake_temporarily():
                scheduler = architecture.scheduler()
            return DdpmPolicy(
                UNet2DModel(**architecture.unet),
                scheduler,
                sampling_chain(scheduler, sampler),
                device=device,
                dtype=dtype,
                adapter=adapter,
                activation_checkpointing=activation_checkpointing,
                keep_base=keep_base,
            )
        case StableDiffusionConfig() | SdxlConfig():
            assert isinstance(architecture, LatentArchitecture)
            if model.vae is not None:
                architecture = replace(architecture, vae=_other_vae(model.vae, architecture))
            parts = untrained_parts(architecture, resolution=model.resolution)
            with unset_fake_temporarily():
                parts = replace(parts, scheduler=DDIMScheduler(**architecture.scheduler))
            policy = SdxlPolicy if isinstance(model, SdxlConfig) else StableDiffusionPolicy
            return policy(
                parts,
                sampler,
                device=device,
                dtype=dtype,
                vae_dtype=choose_vae_dtype(model, dict(architecture.vae), dtype),
                adapter=adapter,
                activation_checkpointing=activation_checkpointing,
                keep_base=keep_base,
                guidance_in_two=guidance_in_two,
                vae_checkpointing=vae_checkpointing,
            )
        case _:
            assert_never(model)


def read_architecture(model: DdpmConfig | StableDiffusionConfig | SdxlConfig) -> DdpmArchitecture | LatentArchitecture:
    """From a pipeline folder's or hub id's own configs. Raises ConfigError."""
    check_kind(model)
    try:
        with unset_fake_temporarily():
            return _read(model)
    except (OSError, ValueError, KeyError) as error:
        raise no_pipeline(model.path, error) from None


def _read(model: DdpmConfig | StableDiffusionConfig | SdxlConfig) -> DdpmArchitecture | LatentArchitecture:
    source, revision = model.path, model.revision
    index: Any = DiffusionPipeline.load_config(source, revision=revision)
    scheduler_class = _scheduler_class(index["scheduler"][1])
    scheduler: Any = scheduler_class.from_pretrained(source, subfolder="scheduler", revision=revision)
    ddim = ddim_scheduler(scheduler)
    if isinstance(model, DdpmConfig):
        return DdpmArchitecture(_config(UNet2DModel, source, "unet", revision), lambda: ddim)
    numbers = ("", "_2") if isinstance(model, SdxlConfig) else ("",)
    where: dict[str, Any] = {} if revision is None else {"revision": revision}
    encoders = [
        CLIPTextConfig.from_pretrained(source, subfolder=f"text_encoder{number}", **where).to_dict()
        for number in numbers
    ]
    return LatentArchitecture(
        unet=_config(UNet2DConditionModel, source, "unet", revision),
        vae=_config(AutoencoderKL, source, "vae", revision),
        text_encoders=tuple(encoders),
        scheduler={key: value for key, value in ddim.config.items() if not key.startswith("_")},
        zero_negative=bool(index.get("force_zeros_for_empty_prompt", False)),
    )


def _config(network: Any, source: str, subfolder: str | None, revision: str | None) -> dict[str, Any]:
    found = network.load_config(source, subfolder=subfolder, revision=revision)
    return {key: value for key, value in dict(found).items() if not key.startswith("_")}


def _scheduler_class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _other_vae(source: str, architecture: LatentArchitecture) -> Mapping[str, Any]:
    if source == FP16_VAE:  # SDXL's own, retrained to stay within fp16
        return {**architecture.vae, "force_upcast": False}
    try:
        return _config(AutoencoderKL, source, None, None)
    except (OSError, ValueError) as error:
        raise no_pipeline(source, error, key="model.vae") from None
