"""What a run asks of a logger, and the run as a logger knows it. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class LoggedRun:
    """A run, before its first row or where it goes on."""

    folder: Path
    recipe: Mapping[str, Any]  # whole, with every default
    recipe_text: str  # the same as YAML
    last_round: int  # after which it goes on; -1: it begins
    key: str  # a name that no other run has, the same whenever it goes on

    @property
    def name(self) -> str:
        """As a person reads it in a list of runs."""
        return self.folder.name


class Logger(Protocol):
    """One place that a run is logged to. Whatever it raises ends it, and never the run."""

    def scalars(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a round, by the names of metrics.jsonl."""
        ...

    def image(self, round_number: int, png: Path) -> None:
        """The grid of an evaluation."""
        ...

    def close(self, exit_code: int) -> None:
        """No more comes; what was said is sent on."""
        ...


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers of a row of metrics.jsonl: texts, lists and what is not finite (null) are left out."""
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and key != "round"  # bool is an int: a flag is 0 or 1
    }
