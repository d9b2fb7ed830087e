"""`python -m tests.fuzz [--seed S] [--count N] [--only NAMES] [--at NUMBER]`: mutants through the commands, a table.

Exit code 1 where one ended in a traceback, ran something, or touched what lies elsewhere.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.campaign import Result
    from tests.fuzz.hostile import Outside

# before any library that reads them is imported
SCRATCH = Path(os.environ.get("MEMDIFF_FUZZ") or tempfile.mkdtemp(prefix="memdiff-fuzz-")).resolve()
for name in ("tmp", "cache"):
    (SCRATCH / name).mkdir(parents=True, exist_ok=True)
os.environ |= {
    "TMPDIR": str(SCRATCH / "tmp"), "XDG_CACHE_HOME": str(SCRATCH / "cache"), "HF_HOME": str(SCRATCH / "cache/hf"),
    "MPLCONFIGDIR": str(SCRATCH / "cache/mpl"), "TRITON_CACHE_DIR": str(SCRATCH / "cache/triton"),
    "TORCHINDUCTOR_CACHE_DIR": str(SCRATCH / "cache/inductor"), "MEMDIFF_PLAN_CACHE": str(SCRATCH / "cache/plans"),
    "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "COLUMNS": "200",
}  # fmt: skip
tempfile.tempdir = None


def main() -> int:
    """Each fault's mutant and last words as it comes, then every surface, a line each."""
    from tests.fuzz.campaign import Campaign
    from tests.fuzz.surfaces import SURFACES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="mutants of each surface")
    parser.add_argument("--only", default="", help="surfaces whose name holds one of these, separated by commas")
    parser.add_argument("--at", type=int, help="this mutant alone, with all that it says")
    parser.add_argument("--all", action="store_true", help="say of every mutant how it ended")
    parser.add_argument("--traced", type=int, default=0, help="as processes of their own under strace: each n-th")
    parser.add_argument("--minutes", type=float, help="no mutant is begun after these")
    parser.add_argument("--mutants-alone", action="store_true", help="not first each command on what is not changed")
    parser.add_argument("--json", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    chosen = [surface for surface in SURFACES if any(word in surface.name for word in arguments.only.split(","))]
    campaign = Campaign(SCRATCH, seed=arguments.seed, traced=arguments.traced)
    results: dict[str, list[Result]] = {surface.name: [] for surface in chosen}
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else math.inf
    whole: dict[str, list[Result]] = {}
    if arguments.at is None and not arguments.mutants_alone:
        whole = {surface.name: campaign.unchanged(surface) for surface in chosen}
        for name, result in ((name, result) for name, results in whole.items() for result in results):
            if result.code or result.fault:
                say(f"{name}: unchanged, and not read: {' '.join(result.words)}\n  {result.last}")
    numbers = range(arguments.count) if arguments.at is None else [arguments.at]
    with contextlib.suppress(KeyboardInterrupt):  # the table is of what was tried until then
        for number, surface in itertools.product(numbers, chosen):  # so that all have as many when the time is up
            if time.monotonic() > end:
                break
            result = campaign.run(surface, number, loud=arguments.at is not None)
            results[surface.name].append(result)
            if result.fault or arguments.all:
                say(f"{surface.name}: {result.fault or 'held'}: --at {number}  {' '.join(result.words)}")
                say(f"  [{result.mutant}]\n  {result.last}")
    rows = {
        name: row(of_surface, whole.get(name, []), campaign.outside)
        for name, of_surface in results.items()
        if of_surface
    }
    for name, counts in rows.items():
        say(f"{name:40} {json.dumps(counts)}")
    totals = Counter[str]()
    for counts in rows.values():
        totals.update({what: count for what, count in counts.items() if not what.startswith("median")})
    say(f"{'all':40} {json.dumps(totals)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "rows": rows}, indent=2) + "\n")
    return int(any(result.fault for of_surface in results.values() for result in of_surface))


def row(results: "list[Result]", whole: "list[Result]", outside: "Outside") -> dict[str, Any]:
    """How many mutants were read, refused, and each kind of fault; the medians of seconds.

    `whole` are the commands on what is not changed: how many of them are read.
    """
    return {
        "commands": len(whole),
        "commands_that_read_what_is_whole": sum(result.code == 0 and not result.fault for result in whole),
        "mutants": len(results),
        "with_a_pickle": sum(result.holds_a_pickle for result in results),
        "with_a_hostile_name": sum(result.holds_a_name(outside) for result in results),
        **Counter(result.fault or ("refused" if result.code else "read") for result in results),
        "median_seconds": round(median(result.seconds for result in results), 2),
        "median_processor_seconds": round(median(result.processor_seconds for result in results), 2),
    }


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line.encode(errors="backslashreplace").decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
