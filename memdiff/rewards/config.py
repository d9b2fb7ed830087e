"""Recipe section `reward`: a list of weighted parts. No torch."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from memdiff.models.config import resolve_source
from memdiff.section import Float, Int, Section


class Part(Section):
    """What every part of a reward has."""

    name: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="In the metrics. None: the kind's own name."
    )
    weight: Float = Field(default=1.0, description="Of this part in the sum; negative to push away.")
    chunk: Int = Field(default=32, ge=1, description="Images scored at once.")


class Confidence(Part):
    """How the probability p of a label becomes a score.

    `binary`      1 where p >= high, else 0 (the source document's gender reward)
    `confident`   p where p >= high or p <= low, else 0
    `probability` p
    `log_probability` log p
    `share`       the yes/no score of `binary`, rewarded by how far the batch is from `target_share`
    """

    mode: Literal["binary", "confident", "probability", "log_probability", "share"] = "binary"
    high: Float = Field(default=0.8, gt=0, le=1, description="p at or above it is a confident yes.")
    low: Float = Field(default=0.2, ge=0, lt=1, description="p at or below it is a confident no.")
    target_share: Float | None = Field(default=None, gt=0, lt=1, description="Wanted share of yes; mode share only.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low={self.low} and high={self.high}")
        if (self.mode == "share") != (self.target_share is not None):
            raise ValueError(f"target_share goes with mode: share, and only with it; got mode: {self.mode}")
        return self


class ClassifierConfig(Confidence):
    """A Hugging Face image classifier, its label chosen by name."""

    kind: Literal["classifier"]
    path: str = Field(min_length=1, description="A folder, or a hub id such as rizvandwiki/gender-classification.")
    label: str = Field(min_length=1, description="A name from the model's label2id, such as male.")
    revision: str | None = None

    @field_validator("path")
    @classmethod
    def _folder_or_hub_id(cls, path: str, info: ValidationInfo) -> str:
        return resolve_source(path, info.context)


class DigitsConfig(Confidence):
    """The embedded digit classifier: the probability that the digit is one of `digits`."""

    kind: Literal["digits"]
    digits: tuple[Int, ...] = Field(default=(5, 6, 7, 8, 9), min_length=1, description="Digits that count as yes.")
    classifier: Literal["reward", "judge"] = Field(
        default="reward", description="judge: the second classifier, for evaluation only."
    )

    @field_validator("digits")
    @classmethod
    def _are_digits(cls, digits: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= digit <= 9 for digit in digits) or len(set(digits)) != len(digits):
            raise ValueError(f"digits must be different numbers 0..9, got {list(digits)}")
        return digits


class PythonConfig(Part):
    """A function of the user's own: `score(images_BCHW, prompts) -> B numbers`, images in [0, 1]."""

    kind: Literal["python"]
    file: str = Field(min_length=1, description="A .py file, from the working directory or beside the recipe.")
    function: str = Field(default="score", pattern=r"^[A-Za-z_]\w*$")
    differentiable: bool = Field(default=False, description="True: gradients flow from the result to the images.")

    @field_validator("file")
    @classmethod
    def _exists(cls, file: str, info: ValidationInfo) -> str:
        folder = info.context.get("folder") if isinstance(info.context, dict) else None
        path = Path(file).expanduser()
        for candidate in (path, *((Path(folder) / path,) if folder else ())):
            if candidate.is_file():
                return str(candidate.resolve())
        raise ValueError(f"no such file: {file}")


RewardPart = Annotated[ClassifierConfig | DigitsConfig | PythonConfig, Field(discriminator="kind")]


def part_name(part: ClassifierConfig | DigitsConfig | PythonConfig) -> str:
    """The name of a part in metrics and reports."""
    if part.name is not None:
        return part.name
    match part:
        case ClassifierConfig():
            return "".join(c if c.isalnum() or c in "_.-" else "_" for c in part.label)[:64]
        case DigitsConfig():
            return "digits" if part.classifier == "reward" else "digits_judge"
        case PythonConfig():
            return part.function
