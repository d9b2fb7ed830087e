"""Recipe sections `model` and `adapter`. No torch."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from memdiff.errors import ConfigError
from memdiff.models.lora.paths import find_adapter, on_hub
from memdiff.models.single_file_kinds import SUFFIXES
from memdiff.runtime.network_files import trouble_in
from memdiff.runtime.section import Float, Int, Section

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"  # of Stable Diffusion 1.x and of both of SDXL's text encoders
HUB_ID = re.compile(r"(?=.{1,96}$)(\w[\w.-]*/)?\w([\w.-]*\w)?", re.ASCII)
EMBEDDED = ("digits", "digits_text")  # models that ship
Precision = Literal["auto", "fp16", "bf16", "fp32"]
VaeCheckpointing = Literal["none", "blocks", "layers"]
ActivationCheckpointing = Literal["none", "feed_forwards", "blocks"]  # of the UNet

CHANNELS_LAST = (
    "Whether the UNet's images and frozen kernels lie channels last, as convolutions in half precision on GPUs want "
    "them. Nothing but rounding changes. Off until a card has shown what it is worth."
)

ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTION_TARGETS = ("conv1", "conv2", "conv_shortcut")

Step = Annotated[Int, Field(ge=0, le=1000)]  # of the chain
Side = Annotated[Int, Field(ge=8, le=4096)]  # of an image, in pixels
Size = tuple[int | None, int | None]  # height and width of an image in pixels; None: what the model was made for


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
    channels_last: bool = Field(default=False, description=CHANNELS_LAST)
    resolution: Side | None = Field(
        default=None, description="Side of square images in pixels. None: what the model was made for."
    )
    height: Side | None = Field(default=None, description="Of the images in pixels. None: what the model was made for.")
    width: Side | None = Field(default=None, description="As height.")

    @field_validator("path")
    @classmethod
    def _folder_or_hub_id(cls, path: str, info: ValidationInfo) -> str:
        source = resolve_source(path, info.context, files=issubclass(cls, LatentConfig))
        if source in EMBEDDED:  # and no folder is: a folder's path is absolute by now
            raise ValueError(f"no such folder: {path}; the model that ships is model: {{kind: embedded, name: {path}}}")
        return source

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.resolution is not None and (self.height is not None or self.width is not None):
            raise ValueError(
                f"resolution is the side of square images; give it, or height and width, not both "
                f"(got {self.resolution} beside {self.height} x {self.width})"
            )
        return self

    @property
    def size(self) -> Size:
        """Height and width that are asked for."""
        return self.resolution or self.height, self.resolution or self.width


class DdpmConfig(PipelineConfig):
    """An unconditional diffusers pipeline (`DDPMPipeline`, `DDIMPipeline`, ...) around a `UNet2DModel`."""

    kind: Literal["ddpm"]


class LatentConfig(PipelineConfig):
    """What text-to-image pipelines in a VAE's latent space have besides. `path` may be a checkpoint in one file."""

    config: str | None = Field(
        default=None,
        min_length=1,
        description="For a path that is one file: a diffusers folder or hub id of the same kind of model, whose "
        "configs, scheduler and tokenizer are taken, not its weights. None: those of Stable Diffusion 1.5 or SDXL, and "
        f"CLIP's tokenizer, {CLIP_TOKENIZER}.",
    )
    vae: str | None = Field(
        default=None,
        min_length=1,
        description="Another VAE, a folder or hub id such as madebyollin/sdxl-vae-fp16-fix, or TAESD, small and nearly "
        "as good: madebyollin/taesd, taesdxl for SDXL. Or one file, a VAE of the model's own architecture. None: its "
        "own.",
    )
    vae_precision: Precision = Field(
        default="auto", description="Of the VAE. auto: the network's, or fp32 where SDXL's own VAE overflows in fp16."
    )

    @field_validator("vae", "config")
    @classmethod
    def _another_folder_or_hub_id(cls, source: str | None, info: ValidationInfo) -> str | None:
        files = info.field_name == "vae"
        return None if source is None else resolve_source(source, info.context, files=files)

    @model_validator(mode="after")
    def _config_of_a_file(self) -> Self:
        if self.config is not None and not self.in_one_file:
            raise ValueError("config goes with a path that is one file; a folder or hub id has its own. Leave it out")
        return self

    @property
    def in_one_file(self) -> bool:
        """Whether `path` is a checkpoint in one file."""
        return self.path.endswith(SUFFIXES) and Path(self.path).is_file()

    @property
    def vae_file(self) -> Path | None:
        """`vae` where it is one file."""
        return Path(self.vae) if self.vae is not None and Path(self.vae).is_file() else None


class StableDiffusionConfig(LatentConfig):
    """Stable Diffusion 1.x or 2.x: `StableDiffusionPipeline`."""

    kind: Literal["stable_diffusion"]


class SdxlConfig(LatentConfig):
    """Stable Diffusion XL: `StableDiffusionXLPipeline`."""

    kind: Literal["sdxl"]


class EmbeddedConfig(Section):
    """A model that ships with memdiff and needs no download."""

    kind: Literal["embedded"]
    name: Literal["digits", "digits_text"] = Field(
        default="digits",
        description="digits: a 16x16 DDPM of handwritten digits. digits_text: a small Stable Diffusion of them.",
    )
    precision: Precision = Field(default="auto", description="As for ddpm.")
    channels_last: bool = Field(default=False, description=CHANNELS_LAST)


ModelConfig = Annotated[DdpmConfig | StableDiffusionConfig | SdxlConfig | EmbeddedConfig, Field(discriminator="kind")]


def takes_prompts(model: ModelConfig) -> bool:
    """Whether the model makes images from texts."""
    if isinstance(model, EmbeddedConfig):
        return model.name == "digits_text"
    return isinstance(model, LatentConfig)


def ships(model: ModelConfig) -> bool:
    """Whether the model comes with memdiff."""
    return isinstance(model, EmbeddedConfig)


def on_the_hub(model: ModelConfig) -> bool:
    """Whether the model has a hub id: local folders are absolute in a checked recipe."""
    return not isinstance(model, EmbeddedConfig) and not Path(model.path).is_absolute()


def base_of(model: ModelConfig) -> str:
    """The model as another machine knows it: a hub id, a name that ships, or a folder's last part."""
    if isinstance(model, EmbeddedConfig):
        return model.name
    return model.path if on_the_hub(model) else Path(model.path).name


def needs_guidance(weight: float | None) -> bool:
    """Whether the branch without a prompt has a say: above 1 alone, as in diffusers' pipelines.

    The formula at 0 would leave the prompt out, where the cards of distilled models mean no guidance.
    """
    return weight is not None and weight > 1


class AdapterConfig(Section):
    """LoRA (Hu et al. 2021) through peft: dW = alpha / rank * B A on the named layers, everything else frozen."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="An adapter to go on from, with its own layers and ranks: a run, a PEFT folder, a LoRA file of "
        "diffusers or kohya, or a hub id (owner/name, or owner/name/FILE). None: a new one, of the rank and targets "
        "below.",
    )
    rank: Int = Field(default=4, ge=1, le=1024, description="Rank r of each layer's update dW = alpha / r B A.")
    alpha: Float | None = Field(default=None, gt=0, le=10**6, description="None: equal to rank, a scale of 1.")
    targets: tuple[str, ...] = Field(
        default=ATTENTION_TARGETS, min_length=1, description="Layer names (the last parts of their paths)."
    )
    convolutions: bool = Field(default=False, description=f"Also adapt {', '.join(CONVOLUTION_TARGETS)}.")
    steps: tuple[Step, Step] | None = Field(
        default=None, description="[start, end): steps of the chain in which the adapter is active. None: all."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_a_new_one(cls, raw: Any) -> Any:
        """Defaults are let through: a stored recipe has them all."""
        if isinstance(raw, dict) and raw.get("path") is not None:
            for key in ("rank", "targets", "convolutions"):
                default = cls.model_fields[key].default
                chosen = raw.get(key, default)
                if (tuple(chosen) if isinstance(chosen, list) else chosen) != default:
                    raise ValueError(
                        f"{key} is a new adapter's; the one at adapter.path keeps its own. Leave {key} out"
                    )
        return raw

    @field_validator("path")
    @classmethod
    def _an_adapter(cls, path: str | None, info: ValidationInfo) -> str | None:
        """Its file, absolute: what lies beside it may change. A hub id stays as it is, and is looked up later."""
        if path is None:
            return None
        beside = info.context.get("folder") if isinstance(info.context, dict) else None
        folder = Path(path).expanduser()
        places = [folder, *((Path(beside) / folder,) if beside else ())]
        if on_hub(folder) and not any(place.exists() for place in places):
            return path
        try:
            return str(find_adapter(next((place for place in places if place.exists()), folder)).resolve())
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and steps[0] >= steps[1]:
            raise ValueError("must be [start, end) with 0 <= start < end")
        return steps


def resolve_source(path: str, context: object, *, files: bool = False) -> str:
    """A folder (tried from the working directory, then beside the recipe) as an absolute path, else the text.

    `files`: a checkpoint in one file is taken, too. Raises ValueError where the text can only be a folder, and it is
    not there.
    """
    folder = Path(path).expanduser()
    beside = context.get("folder") if isinstance(context, dict) else None
    for candidate in (folder, *((Path(beside) / folder,) if beside else ())):
        if candidate.is_dir():
            if (trouble := trouble_in(candidate)) is not None:
                raise ValueError(trouble)
            return str(candidate.resolve())
        if candidate.is_file():
            if files and candidate.suffix in SUFFIXES:
                return str(candidate.resolve())
            raise ValueError(one_file(candidate, files=files))
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise ValueError(f"no such folder: {path}")
    if not HUB_ID.fullmatch(path) or "--" in path or ".." in path or path.endswith(".git"):
        raise ValueError(f"no such folder, and no hub id, which is owner/name in letters, digits and ._-: {path:.100}")
    return path


def one_file(file: Path, *, files: bool) -> str:
    """What to do with a file where a folder is needed, or `files`, a checkpoint in one."""
    if not files and file.suffix in SUFFIXES:
        return (
            f"{file} is a file; only the model of Stable Diffusion and SDXL is read from one. Give a diffusers folder"
        )
    kinds = f" or a checkpoint in one file ({', '.join(SUFFIXES)})" if files else ""
    return f"{file} is a file; give a diffusers pipeline folder{kinds} or a hub id"
