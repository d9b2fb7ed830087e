"""Recipe section `prompts`: which texts images are made from, and which image gets which. No torch.

Every pass through the texts is shuffled anew; passes follow each other without end. Which text an image gets is a
function of the seed, the round and the image: neither ranks nor batches nor a resumed run change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from memdiff.errors import ConfigError
from memdiff.recipe.prompt_files import KNOWN, read_prompt_file
from memdiff.rewards.part_config import resolve_file
from memdiff.runtime.section import Int, Section

STREAM = 6  # memdiff.chain.noise.Stream.PROMPTS, which is not imported: it would load torch
Text = Annotated[str, Field(min_length=1)]


class _Texts(Section):
    """Texts, a file of them, or both."""

    texts: tuple[Text, ...] = Field(default=(), description="The texts, in the place of a file.")
    file: str | None = Field(default=None, description=f"A file of texts: {KNOWN}.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, raw: Any) -> Any:
        if isinstance(raw, str):
            return {"texts": (raw,)}
        if isinstance(raw, dict) and isinstance(raw.get("texts"), str):
            return raw | {"texts": (raw["texts"],)}
        return {"texts": raw} if isinstance(raw, list | tuple) else raw

    @field_validator("file")
    @classmethod
    def _readable(cls, file: str | None, info: ValidationInfo) -> str | None:
        if file is None:
            return None
        path = resolve_file(file, info.context)
        if path is None:
            raise ValueError(f"no such file: {file}")
        try:
            read_prompt_file(Path(path))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return path

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.texts and self.file is None:
            raise ValueError("give a text, a list of texts, or {file: ...}")
        return self

    def read(self) -> tuple[str, ...]:
        """All of them, the listed ones first."""
        return self.texts + (read_prompt_file(Path(self.file)) if self.file else ())


class HeldOutConfig(_Texts):
    """Texts of evaluations only."""


class PromptsConfig(_Texts):
    """What images are made from: a text, a list of texts, `{file: F}`, or these keys."""

    held_out: HeldOutConfig | None = Field(
        default=None, description="Texts that evaluations use and training never sees. None: training's own."
    )
    images_per_prompt: Int = Field(
        default=1, ge=1, le=10**6, description="Consecutive images of a round that share a text."
    )


@dataclass(frozen=True)
class PromptSet:
    """The texts of a run. An unconditional model has one, the empty one."""

    texts: tuple[str, ...] = ("",)
    held_out: tuple[str, ...] = ()
    images_per_prompt: int = 1

    @classmethod
    def read(cls, config: PromptsConfig | None) -> "PromptSet":
        """Reads the files that a recipe names. Raises ConfigError."""
        if config is None:
            return cls()
        held_out = config.held_out.read() if config.held_out else ()
        return cls(config.read(), held_out, config.images_per_prompt)

    def of(self, seed: int, round_number: int, images: Sequence[int], num_images: int) -> list[str]:
        """The texts of these images (numbers in the round, which has `num_images`). Rounds count from 1."""
        groups = -(-num_images // self.images_per_prompt)
        slots = [max(round_number - 1, 0) * groups + image // self.images_per_prompt for image in images]
        count = len(self.texts)
        return [self.texts[_shuffled(seed, slot // count, count)[slot % count]] for slot in slots]

    def of_evaluation(self, images: Sequence[int]) -> list[str]:
        """The held-out texts in turn, or training's where there are none; the same at every evaluation."""
        texts = self.held_out or self.texts
        return [texts[image % len(texts)] for image in images]


@lru_cache(maxsize=8)
def _shuffled(seed: int, number: int, count: int) -> tuple[int, ...]:
    """0..count-1 in the order of pass `number`, by sorting random words (numpy fixes those for all its versions)."""
    key = np.array([seed, STREAM], dtype=np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, 0, number], dtype=np.uint64))
    return tuple(int(index) for index in np.argsort(philox.random_raw(count), kind="stable"))
