"""How long a plan takes: `memdiff plan` of every shipped recipe for 1 and 4 T4, with nothing cached and then with all.

    python -m benchmarks.studies.planning [RECIPE ...]      # writes results/planning.json and planning.md
    ... --plans FOLDER            # also FOLDER/RECIPE.json, what was planned, as benchmarks.recorder.plans writes it
    ... --against CHECKOUT        # each cold plan in another checkout as well; writes planning_against.json and .md

Each plan is a process of its own, the launch of Python and the imports included; the first finds an empty round cache
(MEMDIFF_PLAN_CACHE), the second what the first left there. Wall seconds depend on who else uses the cores (`busy` in
the provenance), CPU seconds of the process and its forks much less: on two idle cores a cold plan's wall is about its
CPU seconds over 1.8. `imports` is a process that loads what a warm plan does and plans nothing.

Targets on two idle cores: cold 15 s (SDXL 25), warm less than 1 s beyond imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    before: Seconds | None = None  # cold, in the other checkout
    load: float = 0.0  # processes that ran or waited for a core, when it was done: a minute's mean


def timed(words: Sequence[str], cache: Path, tree: Path = ROOT) -> tuple[Seconds, str]:
    """A process of its own and what it printed. Raises RuntimeError with what it said where it fails."""
    environment = {**os.environ, "MEMDIFF_PLAN_CACHE": str(cache), "PYTHONPATH": str(tree)}
    before, start = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    wall, after = time.monotonic() - start, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-1000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(round(wall, 2), round(cpu, 2)), done.stdout


def measured(recipe: str, ranks: int, against: Path | None) -> tuple[Row, Any]:
    """The same plan twice, first with an empty cache, and the plan."""
    words = ["-m", "memdiff", "plan", recipe, "--gpu", "t4", "--gpus", str(ranks), "--host-gib", "1000", "--json"]
    before = None
    if against is not None:
        with tempfile.TemporaryDirectory() as cache:
            before = timed(words, Path(cache), against.resolve())[0]
    with tempfile.TemporaryDirectory() as cache:
        cold, plan = timed(words, Path(cache))
        warm, _ = timed(words, Path(cache))
    return Row(recipe, ranks, cold, warm, before, round(os.getloadavg()[0], 1)), json.loads(plan)


def imports() -> Seconds:
    """The second of two processes: files are read by then."""
    with tempfile.TemporaryDirectory() as cache:
        return [timed(["-c", IMPORTS], Path(cache))[0] for _ in range(2)][-1]


COLUMNS = "recipe | ranks | cold: wall (s) | CPU (s) | CPU / 1.8 | target | warm: wall (s) | CPU beyond imports (s)"


def table(rows: Sequence[Row], base: Seconds) -> str:
    """As README's tables are written, and imports under it."""
    against = any(row.before for row in rows)
    columns = f"{COLUMNS} | load" + (" | before, cold: wall (s) | CPU (s) | CPU / 1.8" if against else "")
    lines = [f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]
    for row in rows:
        line = (
            f"| {row.recipe} | {row.ranks} | {_cold(row.cold)} | {target(row):.0f} | {row.warm.wall:.1f} | "
            f"{max(0.0, row.warm.cpu - base.cpu):.2f} | {row.load} |"
        )
        lines.append(line + (f" {_cold(row.before)} |" if row.before else ""))
    return "\n".join(lines) + f"\n\nImports alone: {base.wall:.1f} s, {base.cpu:.1f} CPU seconds.\n"


def _cold(seconds: Seconds) -> str:
    return f"{seconds.wall:.1f} | {seconds.cpu:.1f} | {seconds.cpu / SIDE_BY_SIDE:.1f}"


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
    parser.add_argument("--plans", type=Path, help="a folder for what was planned")
    parser.add_argument("--against", type=Path, help="another checkout")
    options, machine, rows = parser.parse_args(words), of_machine(), []
    base = imports()
    for recipe in options.recipes or shipped_recipes():
        plans = {}
        for ranks in RANKS:
            row, plans[f"{ranks} x t4"] = measured(recipe, ranks, options.against)
            rows.append(row)
            print(
                f"{recipe} x {ranks}: cold {row.cold.cpu} CPU s, warm {row.warm.cpu}, before {row.before}", flush=True
            )
        if options.plans is not None:
            options.plans.mkdir(parents=True, exist_ok=True)
            (options.plans / f"{recipe}.json").write_text(json.dumps(plans, indent=1) + "\n")
    against = ["--against", _commit_of(options.against)] if options.against else []
    command = " ".join(["python -m benchmarks.studies.planning", *options.recipes, *against])
    write_study(
        "planning_against" if against else "planning", command, machine, verdict(rows, base),
        {"imports": asdict(base), "rows": [asdict(row) for row in rows]}, table(rows, base),
    )  # fmt: skip


def _commit_of(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
