"""`python -m tests.fuzz [--seed S] [--count N] [--only NAMES] [--at NUMBER]`: mutants through the commands, a table.

Exit code 1 where one ended in a traceback, ran something, or touched what lies elsewhere.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

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
    """Every surface, a line each, then each fault's mutant and last words."""
    from tests.fuzz.campaign import Campaign
    from tests.fuzz.surfaces import SURFACES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="mutants of each surface")
    parser.add_argument("--only", default="", help="surfaces whose name holds one of these, separated by commas")
    parser.add_argument("--at", type=int, help="this mutant alone, with all that it says")
    parser.add_argument("--all", action="store_true", help="say of every mutant how it ended")
    parser.add_argument("--traced", type=int, default=0, help="as processes of their own under strace: each n-th")
    parser.add_argument("--json", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    chosen = [surface for surface in SURFACES if any(word in surface.name for word in arguments.only.split(","))]
    campaign = Campaign(SCRATCH, seed=arguments.seed, traced=arguments.traced)
    rows = {}
    faults = 0
    for surface in chosen:
        numbers = range(arguments.count) if arguments.at is None else [arguments.at]
        results = campaign.run(surface, numbers, loud=arguments.at is not None)
        counts = Counter(result.fault or ("refused" if result.code else "read") for result in results)
        seconds = sorted(result.seconds for result in results)
        rows[surface.name] = {**counts, "mutants": len(results), "median_seconds": round(seconds[len(seconds) // 2], 2)}
        say(f"{surface.name:40} {len(results):5} {dict(counts)}  median {seconds[len(seconds) // 2]:.2f} s")
        for result in results:
            faults += bool(result.fault)
            if result.fault or arguments.all:
                say(
                    f"  {result.fault or 'held'}: --at {result.number}  {' '.join(result.words)}  [{result.mutant}]\n"
                    f"      {result.last}"
                )
    if arguments.json:
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "rows": rows}, indent=2) + "\n")
    return int(bool(faults))


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line.encode(errors="backslashreplace").decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
