"""What a row of the recorder's tables is. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Training:
    """A run of `memdiff train`: a base recipe with dotted keys laid over it."""

    name: str
    path: str  # what it goes through
    changes: Mapping[str, Any] = field(default_factory=dict)
    base: str = "digits"
    ranks: int = 1

    @property
    def half(self) -> bool:
        """Whether the network runs in fp16."""
        return self.changes.get("model.precision") == "fp16"


@dataclass(frozen=True)
class Composition:
    """A round as the planner composes it from short ones, and the same round simulated whole: bytes by phase."""

    name: str
    path: str
    knobs: Mapping[str, Any]  # the planner's, in its words
    changes: Mapping[str, Any] = field(default_factory=dict)
    base: str = "digits"
    precision: str = "fp32"
    ranks: int = 1
    half: bool = False


@dataclass(frozen=True)
class Sampling:
    """Words for `memdiff sample`; KEPT stands for the folder of kept runs and models."""

    name: str
    path: str
    words: tuple[str, ...]
    ranks: int = 1
    half: bool = False


@dataclass(frozen=True)
class Resuming:
    """The kept run, gone on with for so many rounds in all."""

    name: str
    path: str
    run: str
    rounds: int
    ranks: int = 1
    half: bool = False


Case = Training | Composition | Sampling | Resuming


def overlaid(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with `a.b: value` laid over it; a section that is given whole replaces what was there."""
    result = dict(recipe)
    for dotted, value in changes.items():
        section, _, key = dotted.partition(".")
        if key:
            result[section] = {**result.get(section, {}), key: value}
        else:
            result[section] = value
    return result
