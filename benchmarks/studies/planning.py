"""How long a plan takes: `memdiff plan` of every shipped recipe for 1 and 4 T4, with nothing cached and then with all.

    python -m benchmarks.studies.planning [RECIPE ...]      # writes results/planning.json and planning.md

Each plan is a process of its own, the launch of Python and the imports included; the first finds an empty round cache
(MEMDIFF_PLAN_CACHE), the second what the first left there. Wall seconds depend on who else uses the cores (`busy` in
the provenance), CPU seconds of the process and its forks much less: on two idle cores a cold plan's wall is about its
CPU seconds over 1.8. `imports` is a process that loads what a warm plan does and plans nothing.

Targets on two idle cores: cold 15 s (SDXL 25), warm less than 1 s beyond imports.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.provenance import ROOT, of_machine
from benchmarks.studies.written import write_study
from memdiff.recipe.shipped import shipped_recipes

RANKS = (1, 4)
TARGET_COLD, TARGET_COLD_SDXL, TARGET_WARM = 15.0, 25.0, 1.0  # wall seconds on two idle cores
SIDE_BY_SIDE = 1.8  # CPU seconds in a second of two idle cores, as far as rounds are measured in forks
IMPORTS = "import memdiff.cli, memdiff.planner.command, memdiff.planner.plan, memdiff.planner.table"


@dataclass(frozen=True)
class Seconds:
    """Of one process and those that it started."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One recipe on so many ranks."""

    recipe: str
    ranks: int
    cold: Seconds
    warm: Seconds


def timed(words: Sequence[str], cache: Path) -> Seconds:
    """A process of its own. Raises RuntimeError with what it said where it fails."""
    environment = {**os.environ, "MEMDIFF_PLAN_CACHE": str(cache)}
    before, start = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    wall, after = time.monotonic() - start, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-1000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(round(wall, 2), round(cpu, 2))


def measured(recipe: str, ranks: int) -> Row:
    """The same plan twice, first with an empty cache."""
    words = ["-m", "memdiff", "plan", recipe, "--gpu", "t4", "--gpus", str(ranks), "--json"]
    with tempfile.TemporaryDirectory() as cache:
        return Row(recipe, ranks, timed(words, Path(cache)), timed(words, Path(cache)))


def imports() -> Seconds:
    """The second of two processes: files are read by then."""
    with tempfile.TemporaryDirectory() as cache:
        return [timed(["-c", IMPORTS], Path(cache)) for _ in range(2)][-1]


def table(rows: Sequence[Row], base: Seconds) -> str:
    """As README's tables are written, and what was missed under it."""
    lines = [
        "| recipe | ranks | cold: wall (s) | CPU (s) | CPU / 1.8 | target | warm: wall (s) | CPU beyond imports (s) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.recipe} | {row.ranks} | {row.cold.wall:.1f} | {row.cold.cpu:.1f} | "
        f"{row.cold.cpu / SIDE_BY_SIDE:.1f} | {target(row):.0f} | {row.warm.wall:.1f} | "
        f"{max(0.0, row.warm.cpu - base.cpu):.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + f"\n\nImports alone: {base.wall:.1f} s, {base.cpu:.1f} CPU seconds.\n"


def target(row: Row) -> float:
    """Wall seconds of a cold plan on two idle cores."""
    return TARGET_COLD_SDXL if row.recipe.startswith("sdxl") else TARGET_COLD


def verdict(rows: Sequence[Row], base: Seconds) -> Mapping[str, list[str]]:
    """The plans above target, by CPU seconds as idle cores would take them."""
    return {
        "cold_above_target": [
            f"{row.recipe} x {row.ranks}" for row in rows if row.cold.cpu / SIDE_BY_SIDE > target(row)
        ],
        "warm_above_target": [f"{row.recipe} x {row.ranks}" for row in rows if row.warm.cpu - base.cpu > TARGET_WARM],
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measures one plan after the other and writes all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.planning", description=__doc__)
    parser.add_argument("recipes", nargs="*", help="default: all that ship")
    options, machine, rows = parser.parse_args(words), of_machine(), []
    base = imports()
    for recipe in options.recipes or shipped_recipes():
        for ranks in RANKS:
            rows.append(measured(recipe, ranks))
            print(f"{recipe} x {ranks}: cold {rows[-1].cold.cpu} CPU s, warm {rows[-1].warm.cpu}", flush=True)
    write_study(
        "planning", " ".join(["python -m benchmarks.studies.planning", *options.recipes]), machine, verdict(rows, base),
        {"imports": asdict(base), "rows": [asdict(row) for row in rows]}, table(rows, base),
    )  # fmt: skip


if __name__ == "__main__":
    main()
