"""Recipe sections `model`, `adapter`, `sampler`. No torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from memdiff.section import Float, Int, Section

Precision = Literal["auto", "fp16", "bf16", "fp32"]

ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTION_TARGETS = ("conv1", "conv2", "conv_shortcut")


class DdpmConfig(Section):
    """An unconditional diffusers pipeline (`DDPMPipeline`, `DDIMPipeline`, ...) around a `UNet2DModel`."""

    kind: Literal["ddpm"]
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


class EmbeddedConfig(Section):
    """A model that ships with memdiff and needs no download."""

    kind: Literal["embedded"]
    name: Literal["digits"] = Field(default="digits", description="digits: a 16x16 DDPM of handwritten digits.")
    precision: Precision = Field(default="auto", description="As for ddpm.")


ModelConfig = Annotated[DdpmConfig | EmbeddedConfig, Field(discriminator="kind")]


class AdapterConfig(Section):
    """LoRA (Hu et al. 2021) through peft: dW = alpha / rank * B A on the named layers, everything else frozen."""

    rank: Int = Field(default=4, ge=1, le=1024)
    alpha: Float | None = Field(default=None, gt=0, description="None: equal to rank, a scale of 1.")
    targets: tuple[str, ...] = Field(
        default=ATTENTION_TARGETS, min_length=1, description="Layer names (the last parts of their paths)."
    )
    convolutions: bool = Field(default=False, description=f"Also adapt {', '.join(CONVOLUTION_TARGETS)}.")


class SamplerConfig(Section):
    """The sampling chain: DDIM (Song et al. 2021) on the pipeline's own noise schedule."""

    steps: Int = Field(default=50, ge=1, le=1000, description="K, the number of denoising steps.")
    eta: Float = Field(default=1.0, ge=0, le=1, description="0: deterministic, no density. 1: DDPM-like noise.")
    guidance: Float | None = Field(default=None, ge=0, description="Classifier-free guidance; text models only.")
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = Field(
        default=None, description="None: what the pipeline's scheduler says."
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
    return path
