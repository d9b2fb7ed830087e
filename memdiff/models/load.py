"""From a recipe's `model` to a policy: what kind of pipeline lies there, and the module that reads it."""

from typing import assert_never

import torch
from diffusers import DiffusionPipeline
from pydantic import TypeAdapter

from memdiff.embedded.paths import DIGITS_DDPM, DIGITS_TEXT
from memdiff.errors import ConfigError
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
from memdiff.models.ddpm import load_ddpm
from memdiff.models.policy import Policy
from memdiff.models.precision import DTYPES
from memdiff.models.source import no_pipeline, quiet_hub

PIPELINE_KINDS = {
    "DDPMPipeline": "ddpm",
    "DDIMPipeline": "ddpm",
    "PNDMPipeline": "ddpm",
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "sdxl",
}


def pipeline_kind(source: str, *, revision: str | None = None) -> str:
    """ddpm, stable_diffusion or sdxl, by the class that model_index.json names.

    Raises ConfigError where there is no pipeline, or one of another class.
    """
    try:
        with quiet_hub():
            index = DiffusionPipeline.load_config(source, revision=revision)
    except (OSError, ValueError) as error:
        raise no_pipeline(source, error) from None
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in PIPELINE_KINDS:
        raise ConfigError(f"{source} is a pipeline of class {name}; memdiff takes {', '.join(sorted(PIPELINE_KINDS))}")
    return PIPELINE_KINDS[name]


def check_kind(model: DdpmConfig | StableDiffusionConfig | SdxlConfig) -> None:
    """Raises ConfigError where the pipeline is of another kind than the recipe says."""
    kind = pipeline_kind(model.path, revision=model.revision)
    if kind != model.kind:
        raise ConfigError(f"model.path {model.path} holds a pipeline of kind {kind}; set model.kind: {kind}")


def model_of(source: str, *, revision: str | None = None, variant: str | None = None) -> ModelConfig:
    """The recipe section that a pipeline folder or hub id would have, everything else at its default."""
    return TypeAdapter(ModelConfig).validate_python(
        {"kind": pipeline_kind(source, revision=revision), "path": source, "revision": revision, "variant": variant}
    )


def load_policy(
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
    """The policy that a recipe names, in `precision` (fp16, bf16 or fp32: resolved).

    `keep_base` keeps the untrained weights in host memory where all of the denoiser is trained. Text models take
    `guidance_in_two` (the two branches of guidance one after the other) and `vae_checkpointing`.

    Raises ConfigError in one line where there is no such pipeline, or it is of another kind.
    """
    if isinstance(model, EmbeddedConfig):
        model = embedded_source(model)
    check_kind(model)
    match model:
        case DdpmConfig():
            return load_ddpm(
                model.path,
                sampler,
                device=device,
                dtype=DTYPES[precision],
                revision=model.revision,
                variant=model.variant,
                adapter=adapter,
                activation_checkpointing=activation_checkpointing,
                keep_base=keep_base,
            )
        case StableDiffusionConfig() | SdxlConfig():
            from memdiff.models.latent_files import load_latent

            return load_latent(
                model,
                sampler,
                device=device,
                dtype=DTYPES[precision],
                adapter=adapter,
                activation_checkpointing=activation_checkpointing,
                keep_base=keep_base,
                guidance_in_two=guidance_in_two,
                vae_checkpointing=vae_checkpointing,
            )
        case _:
            assert_never(model)


def embedded_source(model: EmbeddedConfig) -> DdpmConfig | StableDiffusionConfig:
    """The pipeline folder that ships with memdiff."""
    match model.name:
        case "digits":
            return DdpmConfig(kind="ddpm", path=str(DIGITS_DDPM))
        case "digits_text":
            return StableDiffusionConfig(kind="stable_diffusion", path=str(DIGITS_TEXT))
        case _:
            assert_never(model.name)
