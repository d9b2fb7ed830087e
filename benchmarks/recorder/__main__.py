"""`python -m benchmarks.recorder write | check | compare | list`: numbers of every path, held to `==`."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.recorder import compare, here, processes
from benchmarks.recorder.cases import CASES, PLANNED, PLANNED_BY_DEFAULT

RECORD = Path(__file__).resolve().parent / "record"
KEPT = "kept"  # of a record: runs and models


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 1 where a value differs or a case failed, 2 for a mistake."""
    options = _parser().parse_args(words)
    if options.command == "compare":
        return _report(options.folder, options.found, sorted(compare.read_cases(options.found)), exact=options.exact)
    names = _chosen(options.case, plans=options.plans)
    if not names:
        print(f"no case matches {options.case}; `list` shows them", file=sys.stderr)
        return 2
    if options.command == "list":
        about = {case.name: case.path for case in CASES}
        print("\n".join(f"{name:45} {about.get(name, 'memdiff plan --gpu t4 --gpus 1 and 4')}" for name in names))
        return 0
    if options.command == "write":
        return _write(options.folder, names, kept=options.folder / KEPT)
    with tempfile.TemporaryDirectory(prefix="recorder_") as current:
        failed = _write(Path(current), names, kept=options.folder / KEPT)
        return _report(options.folder, Path(current), names, exact=options.exact) or failed


def _chosen(patterns: Sequence[str] | None, *, plans: bool) -> list[str]:
    """In the table's order. Plans of large models take minutes: they are asked for, all or by name."""
    every = [case.name for case in CASES] + [f"plan/{name}" for name in PLANNED]
    if patterns:
        return [name for name in every if any(fnmatchcase(name, one) for one in patterns)]
    slow = set() if plans else {f"plan/{name}" for name in PLANNED if name not in PLANNED_BY_DEFAULT}
    return [name for name in every if name not in slow]


def _write(folder: Path, names: Sequence[str], *, kept: Path) -> int:
    """Runs cases and lays their values over those in the folder."""
    (folder / compare.PLANS).mkdir(parents=True, exist_ok=True)
    cases = [case for case in CASES if case.name in names]
    make_kept = not kept.is_dir() and any("kept/" in case.name for case in cases)
    results = processes.run_cases(cases, kept, make_kept=make_kept, say=_say)
    recipes = [name.removeprefix("plan/") for name in names if name.startswith("plan/")]
    if recipes:
        _say(f"{len(recipes)} recipes planned for 1 and 4 cards")
        words = [sys.executable, "-m", "benchmarks.recorder.plans", str(folder / compare.PLANS), *recipes]
        subprocess.run(words, env=processes.environment(), cwd=processes.ROOT, check=True)
    compare.write_cases(folder, {name: each["values"] for name, each in results.items()}, order=[c.name for c in CASES])
    (folder / compare.ENVIRONMENT).write_text(json.dumps(here.describe(), indent=1) + "\n")
    failed = [name for name, each in results.items() if "failed" in json.dumps(each["values"])]
    for name in failed:
        print(f"{name} failed:\n{_reasons(results[name]['values'])}")
    seconds = sum(each["seconds"] for each in results.values())
    _say(f"{len(results)} cases in {seconds:.0f} s of their processes; slowest: {_slowest(results)}")
    return int(bool(failed))


def _report(stored: Path, current: Path, names: Sequence[str], *, exact: bool) -> int:
    """Says every difference at once; 1 where there is one."""
    there, ours = (json.loads((folder / compare.ENVIRONMENT).read_text()) for folder in (stored, current))
    apart = compare.elsewhere(there, ours)
    if apart and not exact:
        print("another environment than the record's, so numbers are compared that are close, not checksums:")
        print("\n".join(f"  {line}" for line in apart))
        if any(name.startswith("plan/") for name in names) and there["packages"] != ours["packages"]:
            print("  plans are not compared: what libraries allocate differs by their versions")
            names = [name for name in names if not name.startswith("plan/")]
    different = compare.differences(
        compare.read_cases(stored), compare.read_cases(current), names, exact=exact or not apart,
        half=[case.name for case in CASES if case.half],
    )  # fmt: skip
    for each in different:
        print(each)
    wrong = {each.case for each in different}
    same = len(names) - len(wrong)
    print(f"{len(names)} cases, {same} as in the record of commit {there['commit']}, {len(wrong)} not")
    return int(bool(different))


def _reasons(values: Any) -> str:
    if isinstance(values, dict):
        return str(values["failed"]) if "failed" in values else "\n".join(_reasons(value) for value in values.values())
    return ""


def _slowest(results: dict[str, Any]) -> str:
    ordered = sorted(results, key=lambda name: -results[name]["seconds"])[:3]
    return ", ".join(f"{name} {results[name]['seconds']:.0f} s" for name in ordered)


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorder", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("write", "run cases and write what they give into a record; what is kept of old commits stays"),
        ("check", "run cases again and compare them with a record"),
        ("list", "the cases and what they go through"),
        ("compare", "compare two records without running anything"),
    ):
        command = commands.add_parser(name, help=help_text)
        if name != "list":
            command.add_argument("folder", nargs="?", type=Path, default=RECORD, help="default: the committed record")
        if name == "compare":
            command.add_argument("found", type=Path)
        else:
            command.add_argument("--case", action="append", metavar="NAME", help="only these; * matches anything")
            command.add_argument("--plans", action="store_true", help="also the plans that take minutes")
        if name in ("check", "compare"):
            command.add_argument("--exact", action="store_true", help="checksums, whatever the environment")
    return parser


if __name__ == "__main__":
    sys.exit(main())
