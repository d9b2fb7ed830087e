"""Recipe sections `model`, `adapter`, `sampler`. No torch."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from memdiff.runtime.section import Float, Int, Section

HUB_ID = re.compile(r"(?=.{1,96}$)(\w[\w.-]*/)?\w([\w.-]*\w)?", re.ASCII)
Precision = Literal["auto", "fp16", "bf16", "fp32"]
VaeCheckpointing = Literal["none", "blocks", "layers"]
ActivationCheckpointing = Literal["none", "feed_forwards", "blocks"]  # of the UNet

ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTION_TARGETS = ("conv1", "conv2", "conv_shortcut")

Step = Annotated[Int, Field(ge=0, le=1000)]  # of the chain


class PipelineConfig(Section):
    """What every diffusers pipeline has, wherever it comes from."""

    path: str = Field(min_length=1, description="A pipeline folder, or a hub id such as google/ddpm-celebahq-256.")
    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub. None: the default branch."
    )
    variant: str | None = Field(default=None, description="Weight variant such as fp16. None: the plain files.")
    precision: Precision = Field(
        default="auto", description="Of the network. auto: fp16 on a CUDA device, fp32 on a CPU."
    )

    @field_validator("path")
    @classmethod
    def _folder_or_hub_id(cls, path: str, info: ValidationInfo) -> str:
        return resolve_source(path, info.context)


class DdpmConfig(PipelineConfig):
    """An unconditional diffusers pipeline (`DDPMPipeline`, `DDIMPipeline`, ...) around a `UNet2DModel`."""

    kind: Literal["ddpm"]


class LatentConfig(PipelineConfig):
    """What text-to-image pipelines in a VAE's latent space have besides."""

    vae: str | None = Field(
        default=None,
        min_length=1,
        description="Another VAE, a folder or hub id such as madebyollin/sdxl-vae-fp16-fix. None: the pipeline's own.",
    )
    vae_precision: Precision = Field(
        default="auto", description="Of the VAE. auto: the network's, or fp32 where SDXL's own VAE overflows in fp16."
    )
    resolution: Int | None = Field(
        default=None, ge=8, le=4096, description="Side of the images in pixels. None: what the model was made for."
    )

    @field_validator("vae")
    @classmethod
    def _vae_folder_or_hub_id(cls, vae: str | None, info: ValidationInfo) -> str | None:
        return None if vae is None else resolve_source(vae, info.context)


class StableDiffusionConfig(LatentConfig):
    """Stable Diffusion 1.x or 2.x: `StableDiffusionPipeline`."""

    kind: Literal["stable_diffusion"]


class SdxlConfig(LatentConfig):
    """Stable Diffusion XL: `StableDiffusionXLPipeline`."""

    kind: Literal["sdxl"]


EMBEDDED = ("digits", "digits_text")  # models that ship


class EmbeddedConfig(Section):
    """A model that ships with memdiff and needs no download."""

    kind: Literal["embedded"]
    name: Literal["digits", "digits_text"] = Field(
        default="digits",
        description="digits: a 16x16 DDPM of handwritten digits. digits_text: a small Stable Diffusion of them.",
    )
    precision: Precision = Field(default="auto", description="As for ddpm.")


ModelConfig = Annotated[DdpmConfig | StableDiffusionConfig | SdxlConfig | EmbeddedConfig, Field(discriminator="kind")]


def takes_prompts(model: ModelConfig) -> bool:
    """Whether the model makes images from texts."""
    if isinstance(model, EmbeddedConfig):
        return model.name == "digits_text"
    return isinstance(model, LatentConfig)


class AdapterConfig(Section):
    """LoRA (Hu et al. 2021) through peft: dW = alpha / rank * B A on the named layers, everything else frozen."""

    rank: Int = Field(default=4, ge=1, le=1024, description="Rank r of each layer's update dW = alpha / r B A.")
    alpha: Float | None = Field(default=None, gt=0, le=10**6, description="None: equal to rank, a scale of 1.")
    targets: tuple[str, ...] = Field(
        default=ATTENTION_TARGETS, min_length=1, description="Layer names (the last parts of their paths)."
    )
    convolutions: bool = Field(default=False, description=f"Also adapt {', '.join(CONVOLUTION_TARGETS)}.")
    steps: tuple[Step, Step] | None = Field(
        default=None, description="[start, end): steps of the chain in which the adapter is active. None: all."
    )

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and steps[0] >= steps[1]:
            raise ValueError("must be [start, end) with 0 <= start < end")
        return steps


class SamplerConfig(Section):
    """The sampling chain: DDIM (Song et al. 2021) on the pipeline's own noise schedule."""

    steps: Int = Field(default=50, ge=1, le=1000, description="K, the number of denoising steps.")
    eta: Float = Field(default=1.0, ge=0, le=1, description="0: deterministic, no density. 1: DDPM-like noise.")
    guidance: Float | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Weight of classifier-free guidance. None, or 1 and less (diffusers' rule): none, the prompt alone "
        "counts. Text models only.",
    )
    negative_prompt: str | None = Field(
        default=None, description="In the empty prompt's place. None: what the pipeline does without one."
    )
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = Field(
        default=None, description="None: what the pipeline's scheduler says."
    )
    clip_gradient: Literal["exact", "straight_through"] = Field(
        default="exact",
        description="Of x0's pixels that the scheduler clips. exact: zero. straight_through: as if unclipped.",
    )
    sigma_floor: Float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Smallest std of a step, sampled and scored alike; above 0 every step has a density. 0: none.",
    )


def resolve_source(path: str, context: object) -> str:
    """A folder (tried from the working directory, then beside the recipe) as an absolute path, else the text.

    Raises ValueError where the text can only be a folder, and it is not there.
    """
    folder = Path(path).expanduser()
    beside = context.get("folder") if isinstance(context, dict) else None
    for candidate in (folder, *((Path(beside) / folder,) if beside else ())):
        if candidate.is_dir():
            return str(candidate.resolve())
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise ValueError(f"no such folder: {path}")
    if not HUB_ID.fullmatch(path) or "--" in path or ".." in path or path.endswith(".git"):
        raise ValueError(f"no such folder, and no hub id, which is owner/name in letters, digits and ._-: {path:.100}")
    return path
