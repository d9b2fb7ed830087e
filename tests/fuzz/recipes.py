"""Recipes with mistakes: `python -m tests.fuzz.recipes [--seed S] [--count N] [--processes N]`, and a table.

Each is refused with exit code 2, in one line that names the dotted key or the line of the file, before torch is
imported; and 100 changed recipes that are right are not. Seconds are those of the command in a fork of a process that
has imported the command line alone; `--processes` runs so many as processes of their own, from the interpreter's start.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.recipe_mistakes import RECIPES, ROOT, Recipe, mistakes, right

CHECK = """
import sys
from memdiff.cli import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


def main() -> int:
    """A line a kind, then what was not refused as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--valid", type=int, default=100)
    parser.add_argument("--processes", type=int, default=0, help="so many of them as processes of their own")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        for beside in ("prompts", "rewards"):  # what the recipes that ship name
            shutil.copytree(RECIPES / beside, place / beside)
        os.chdir(place)
        os.environ["COLUMNS"] = "200"
        faults, table = refused(place, arguments.seed, arguments.count, arguments.processes)
        wrong = accepted(place, arguments.seed, arguments.valid)
    for kind, row in table.items():
        say(f"{kind:32} {json.dumps(row)}")
    say(f"{arguments.count} with mistakes, {len(faults)} of them not refused as they should be")
    say(f"{arguments.valid} that are right, {len(wrong)} of them refused")
    for fault in [*faults, *wrong]:
        say(f"  {fault}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"table": table, "faults": faults, "wrongly refused": wrong}, indent=2) + "\n"
        )
    return int(bool(faults or wrong))


def refused(place: Path, seed: int, count: int, processes: int = 0) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """What was not refused as it should be, and counts and seconds by kind. Imports no torch itself."""
    mark, file = place / "mark", place / "recipe.yaml"
    makers = mistakes(mark)
    kinds, seconds, faults = Counter(), defaultdict(list), []
    every = max(1, count // processes) if processes else 0
    for number in range(count):
        random = Random(f"{seed} recipe {number}")
        kind = list(makers)[number % len(makers)]
        recipe = makers[kind](random)
        file.write_bytes(recipe.text)
        own_process = bool(every) and number % every == 0
        code, said, took, torch = (_process if own_process else _fork)(file)
        kinds[kind] += 1
        seconds["process" if own_process else kind].append(took)
        fault = _fault(recipe, code, said, torch, mark)
        if fault:
            faults.append(f"{number} {kind}: {fault}: {ascii(said)[:400]} (named: {recipe.named})")
    table = {
        kind: {"count": kinds[kind], "slowest_seconds": round(max(seconds[kind], default=0.0), 3)} for kind in kinds
    }
    if seconds["process"]:
        tried = sorted(seconds["process"])
        table["as processes of their own"] = {
            "count": len(tried),
            "median_seconds": round(tried[len(tried) // 2], 2),
            "slowest_seconds": round(tried[-1], 2),
        }
    return faults, table


def _fault(recipe: Recipe, code: int, said: str, torch: bool, mark: Path) -> str | None:
    lines = [line for line in said.splitlines() if line.startswith("memdiff: error[")]
    if mark.exists():
        return "it ran"
    if "Traceback" in said:
        return "a traceback"
    if code != 2 or len(lines) != 1:
        return f"exit code {code}, {len(lines)} lines"
    if torch:
        return "torch was imported"
    if recipe.named not in said:
        return "the key is not named"
    return "a long line" if len(lines[0]) > 600 else None


def _fork(file: Path) -> tuple[int, str, float, bool]:
    """Exit code, all that was said, seconds, whether torch was imported."""
    import memdiff.recipe.reading
    import memdiff.training.run_folder
    from memdiff.cli import main as memdiff_main

    assert memdiff.recipe.reading and memdiff.training.run_folder
    log = file.with_name("said")
    begun = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                memdiff_main(["train", str(file), "--out", "out", "--dry-run"])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 98
            except BaseException:
                import traceback

                traceback.print_exc()
            os.write(output, b"\ntorch\n" if "torch" in sys.modules else b"")
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = log.read_text(errors="replace")
    return code, said, time.perf_counter() - begun, said.endswith("\ntorch\n")


def _process(file: Path) -> tuple[int, str, float, bool]:
    """The same, by the interpreter's own start."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", CHECK, "train", str(file), "--out", "out", "--dry-run"]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, errors="replace", stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    return ended.returncode, ended.stdout, time.perf_counter() - begun, "torch was imported" in ended.stdout


def accepted(place: Path, seed: int, count: int) -> list[str]:
    """Recipes that are right and were refused."""
    from memdiff.errors import ConfigError
    from memdiff.recipe.reading import read_recipe

    file, wrong = place / "right.yaml", []
    for number in range(count):
        file.write_bytes(right(Random(f"{seed} right {number}")))
        try:
            read_recipe(file)
        except ConfigError as error:
            wrong.append(f"{number}: {error}")
    return wrong


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
