"""What was measured, as text to paste into an issue and as JSON. No torch.

Planned and measured are apart: `planned` comes from fake tensors before anything runs, `measured` from the device.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memdiff.runtime.exit_codes import harmless
from memdiff.runtime.units import GIB

SAME_GRADIENT = 1e-5  # relative, in fp32: CONTRIBUTING's third invariant
UNKNOWN = "-"


@dataclass(frozen=True)
class RecipeRow:
    """A recipe's plan and two rounds of it, the second one measured. Bytes but where a name says otherwise."""

    recipe: str
    weights: str  # real, random or embedded
    images: int
    steps: int
    precision: str
    planned_live: int
    planned_peak: int  # with the allowance for what the allocator reserves beyond live bytes
    measured_live: int
    measured_reserved: int | None  # None without an allocator of CUDA's
    estimated_seconds: float | None  # of a round; None on a card whose pace is not known
    measured_seconds: float
    knobs: dict[str, Any] = field(default_factory=dict)

    @property
    def milliseconds_per_image_step(self) -> float:
        """Everything that a round does, by its images and steps."""
        return 1000 * self.measured_seconds / (self.images * self.steps)

    def line(self) -> str:
        """What is said when it is known."""
        return (
            f"{self.recipe} ({self.weights} weights): planned {_gib(self.planned_live)} GiB live, measured "
            f"{_gib(self.measured_live)}; a round took {self.measured_seconds:.1f} s"
        )

    def cells(self) -> list[str]:
        """A row of the table."""
        return [
            self.recipe, self.weights, f"{self.images} x {self.steps}", self.precision, _gib(self.planned_live),
            _gib(self.measured_live), f"{self.measured_live / self.planned_live:.3f}", _gib(self.planned_peak),
            _gib(self.measured_reserved), _seconds(self.estimated_seconds), _seconds(self.measured_seconds),
            f"{self.milliseconds_per_image_step:.0f}",
        ]  # fmt: skip


@dataclass(frozen=True)
class ParityRow:
    """The same rounds on so many ranks. `distance`: of the first gradient to one rank's, relative; None for its own."""

    ranks: int
    backend: str
    seconds: float  # of the second round
    distance: float | None

    @property
    def verdict(self) -> str:
        """In a word, for people."""
        if self.distance is None:
            return "what the others are held to"
        return "same" if self.distance <= SAME_GRADIENT else f"DIFFERS by more than {SAME_GRADIENT:g}"

    def line(self) -> str:
        """What is said when it is known."""
        by = "" if self.distance is None else f", gradient {self.distance:.1e} from one rank's: {self.verdict}"
        return f"{self.ranks} rank(s) over {self.backend}: {self.seconds:.2f} s a round{by}"

    def cells(self) -> list[str]:
        """A row of the table."""
        distance = UNKNOWN if self.distance is None else f"{self.distance:.1e}"
        return [str(self.ranks), self.backend, f"{self.seconds:.2f}", distance, self.verdict]


@dataclass
class BenchBlock:
    """All of it, in the order in which it is measured."""

    versions: dict[str, str | None]  # of packages, by name; commit
    machine: str = ""
    doctor: list[str] = field(default_factory=list)  # what is not well, a line each
    recipes: list[RecipeRow] = field(default_factory=list)
    parity: list[ParityRow] = field(default_factory=list)
    parity_recipe: str = ""
    notes: list[str] = field(default_factory=list)  # what a reader has to know of the rows
    failures: list[str] = field(default_factory=list)  # parts that have no row, and why

    @property
    def is_well(self) -> bool:
        """Whether every part has its row and ranks agree."""
        return not self.failures and all(row.distance is None or row.distance <= SAME_GRADIENT for row in self.parity)

    def markdown(self) -> str:
        """The block: Markdown that an issue shows as tables."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items() if version)
        lines = ["### memdiff bench", f"- machine: {self.machine}", f"- versions: {versions}"]
        lines += [f"- {note}" for note in self.notes]
        lines += [f"- doctor: {line}" for line in self.doctor]
        lines += [f"- **failed**: {line}" for line in self.failures]
        if self.recipes:
            head = (
                "recipe", "weights", "images x steps", "precision", "live, planned", "live, measured", "measured / "
                "planned", "with allowance, planned", "reserved, measured", "s a round, estimated", "measured",
                "ms an image-step",
            )  # fmt: skip
            lines += ["", "Plan and peak on one rank, GiB:", "", *_table(head, [row.cells() for row in self.recipes])]
        if self.parity:
            head = ("ranks", "backend", "s a round", "gradient's distance to one rank's", "")
            lines += ["", f"One rank and several, {self.parity_recipe}, fp32:", ""]
            lines += _table(head, [row.cells() for row in self.parity])
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, bytes as bytes."""
        return {"is_well": self.is_well, **dataclasses.asdict(self)}

    def write(self, folder: Path) -> None:
        """bench.md and bench.json, each whole at any time. Raises OSError."""
        for name, text in (("bench.md", self.markdown()), ("bench.json", json.dumps(self.to_json(), indent=2) + "\n")):
            partial = folder / f"{name}.tmp"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)


def _table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    cells = [[harmless(cell).replace("|", "/") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _gib(size: int | None) -> str:
    return UNKNOWN if size is None else f"{size / GIB:.3f}" if size < GIB else f"{size / GIB:.2f}"


def _seconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{seconds:.1f}"
