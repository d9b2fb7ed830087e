"""What the parts of a reward have in common. No torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from memdiff.models.config import Precision, resolve_source
from memdiff.runtime.section import Float, Int, Section


class Part(Section):
    """What every part of a reward has."""

    name: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="In the metrics. None: the kind's own name."
    )
    weight: Float = Field(default=1.0, ge=-1e9, le=1e9, description="Of this part in the sum; negative to push away.")
    chunk: Int = Field(default=32, ge=1, le=10**6, description="Images scored at once.")
    normalise: Literal["none", "running"] = Field(
        default="none",
        description="running: (score - mean) / (std + 1e-6) over all images so far enters the sum; metrics stay raw.",
    )
    non_finite: Literal["error", "drop", "clamp"] = Field(
        default="error",
        description="A score that is NaN or infinite: error ends the run; drop leaves its image out of the round; "
        "clamp takes the nearest finite one of the round, for NaN the worst. Both with method.kind: reinforce only.",
    )


class NetworkPart(Part):
    """A part that runs a network loaded from a folder or the hub."""

    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub. None: the default branch."
    )
    precision: Precision = Field(default="auto", description="Of the network. auto: fp16 on CUDA, fp32 on a CPU.")
    checkpointing: bool = Field(
        default=False, description="Recompute layer by layer in the backward pass: less memory, a third more time."
    )

    @field_validator("path", check_fields=False)
    @classmethod
    def _folder_or_hub_id(cls, path: str, info: ValidationInfo) -> str:
        return resolve_source(path, info.context)


class TextPart(NetworkPart):
    """A part that compares images with their prompts."""

    prompt: str | None = Field(
        default=None, min_length=1, description="Compared with every image. None: each image's own prompt."
    )


def resolve_file(file: str, context: object) -> str | None:
    """A file that exists (tried from the working directory, then beside the recipe) as an absolute path, else None."""
    path = Path(file).expanduser()
    folder = context.get("folder") if isinstance(context, dict) else None
    for candidate in (path, *((Path(folder) / path,) if folder else ())):
        if candidate.is_file():
            return str(candidate.resolve())
    return None


def resolve_weights(source: str, context: object) -> str:
    """A weight file that exists, or a folder or hub id as `resolve_source` takes them."""
    return resolve_file(source, context) or resolve_source(source, context)
