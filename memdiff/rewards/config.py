"""Recipe section `reward`: a list of weighted parts. No torch."""

from typing import Annotated, Literal, Self, assert_never

from pydantic import Field, ValidationInfo, field_validator, model_validator

from memdiff.models.config import Precision, resolve_source
from memdiff.rewards.families_config import (
    AestheticConfig,
    ClipSimilarityConfig,
    DetectionConfig,
    HpsConfig,
    ImageRewardConfig,
    JpegConfig,
    PickScoreConfig,
)
from memdiff.rewards.handed_over import HERE
from memdiff.rewards.part_config import Part, resolve_file
from memdiff.runtime.section import Float, Int

Digit = Annotated[Int, Field(ge=0, le=9)]


class Confidence(Part):
    """How the probability p of a label becomes a score.

    `binary`      1 where p >= high, else 0 (the gender reward of celebahq_reinforce)
    `confident`   p where p >= high or p <= low, else 0
    `probability` p
    `log_probability` log p
    `share`       the yes/no score of `binary`, rewarded by how far the batch is from `target_share`
    """

    mode: Literal["binary", "confident", "probability", "log_probability", "share"] = Field(
        default="binary",
        description="binary: 1 from `high` on, else 0; confident: p where it is above `high` or below `low`, else 0; "
        "probability: p; log_probability: log p; share: pulls the batch's share of yes to `target_share`.",
    )
    high: Float = Field(default=0.8, gt=0, le=1, description="p at or above it is a confident yes.")
    low: Float = Field(default=0.2, ge=0, lt=1, description="p at or below it is a confident no.")
    target_share: Float | None = Field(default=None, gt=0, lt=1, description="Wanted share of yes; mode share only.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low={self.low} and high={self.high}")
        if (self.mode == "share") != (self.target_share is not None):
            raise ValueError(f"target_share goes with mode: share, and only with it; got mode: {self.mode}")
        if self.mode == "share" and self.normalise == "running":
            raise ValueError("normalise: running would undo mode: share, which fades near its target; leave one out")
        return self


class ClassifierConfig(Confidence):
    """A Hugging Face image classifier, its label chosen by name."""

    kind: Literal["classifier"]
    path: str = Field(min_length=1, description="A folder, or a hub id such as rizvandwiki/gender-classification.")
    label: str = Field(min_length=1, description="A name from the model's label2id, such as male.")
    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub. None: the default branch."
    )
    precision: Precision = Field(default="auto", description="Of the network. auto: fp16 on CUDA, fp32 on a CPU.")

    @field_validator("path")
    @classmethod
    def _folder_or_hub_id(cls, path: str, info: ValidationInfo) -> str:
        return resolve_source(path, info.context)


class DigitsConfig(Confidence):
    """The embedded digit classifier: the probability that the digit is one of `digits`."""

    kind: Literal["digits"]
    digits: tuple[Digit, ...] = Field(default=(5, 6, 7, 8, 9), min_length=1, description="Digits that count as yes.")
    pool: Literal["sum", "max"] = Field(
        default="sum",
        description="sum: p of the group. max: p of its likeliest digit; over all ten, how legible an image is.",
    )
    classifier: Literal["reward", "judge"] = Field(
        default="reward", description="judge: the second classifier, for evaluation only."
    )

    @field_validator("digits")
    @classmethod
    def _differ(cls, digits: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(digits)) != len(digits):
            raise ValueError(f"digits must be different numbers 0..9, got {list(digits)}")
        return digits


class PythonConfig(Part):
    """A function of the user's own: `score(images_BCHW, prompts) -> B numbers`, images in [0, 1].

    A run that was started with one file is not resumed with another; modules that the file imports are not looked at.
    """

    kind: Literal["python"]
    file: str = Field(min_length=1, description="A .py file, from the working directory or beside the recipe.")
    function: str = Field(
        default="score", pattern=r"^[A-Za-z_]\w*$", description="Its name in the file: score(images_BCHW, prompts)."
    )
    differentiable: bool = Field(default=False, description="True: gradients flow from the result to the images.")
    gpu_mib: Int = Field(
        default=0, ge=0, le=2**20, description="GPU memory that it takes, in MiB: the plan can't look inside."
    )

    @field_validator("file")
    @classmethod
    def _exists(cls, file: str, info: ValidationInfo) -> str:
        path = file if file == HERE else resolve_file(file, info.context)
        if path is None:
            raise ValueError(f"no such file: {file}")
        return path


AnyPart = (
    ClassifierConfig
    | DigitsConfig
    | PythonConfig
    | ImageRewardConfig
    | AestheticConfig
    | PickScoreConfig
    | HpsConfig
    | ClipSimilarityConfig
    | DetectionConfig
    | JpegConfig
)
RewardPart = Annotated[AnyPart, Field(discriminator="kind")]


def part_name(part: AnyPart) -> str:
    """The name of a part in metrics and reports."""
    if part.name is not None:
        return part.name
    match part:
        case ClassifierConfig():
            return _as_name(part.label)
        case DigitsConfig():
            return "digits" if part.classifier == "reward" else "digits_judge"
        case PythonConfig():
            return part.function
        case DetectionConfig():
            return _as_name(f"{part.mode} {part.object}")
        case JpegConfig():
            return "compressible" if part.prefer == "small" else "incompressible"
        case ImageRewardConfig() | AestheticConfig() | PickScoreConfig() | HpsConfig() | ClipSimilarityConfig():
            return part.kind
        case _:
            assert_never(part)


def users_function(part: AnyPart) -> tuple[str, str] | None:
    """The file that a user wrote and the function in it, where a part calls one."""
    return (part.file, part.function) if isinstance(part, PythonConfig) and part.file != HERE else None


def way_to_a_gradient(part: AnyPart) -> str | None:
    """What to change in a part whose score does not follow small changes of an image; None where it does."""
    match part:
        case ClassifierConfig() | DigitsConfig():
            return "set mode: probability or log_probability" if part.mode in ("binary", "share") else None
        case PythonConfig():
            return None if part.differentiable else "set differentiable: true if it is made of torch operations"
        case JpegConfig():
            return "set measure: distance" if part.measure == "size" else None
        case _:
            return None


def _as_name(words: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in words)[:64]
