"""`python -m tests.faults [--soak] [--only NAMES] [--json FILE]`: trials on real runs, and the table of what came.

Exit code 1 where one failed.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.trials import SOAK, TRIALS, Result, outcome


def main() -> int:
    """Runs the trials one after the other, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--soak", action="store_true", help="the long ones")
    parser.add_argument("--only", default="", help=f"of {', '.join([*TRIALS, *SOAK])}; separated by commas")
    parser.add_argument("--json", type=Path, help="also write the results here")
    arguments = parser.parse_args()
    trials = TRIALS | SOAK if arguments.only else SOAK if arguments.soak else TRIALS
    names = arguments.only.split(",") if arguments.only else list(trials)
    results: list[Result] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            place = Path(folder) / name
            place.mkdir()
            for result in trials[name](place):
                results.append(result)
                verdict = "failed: " + result.failure if result.failure else f"held, {result.seconds:.1f} s"
                say(f"{time.monotonic() - begun:6.0f} s  {result.target:4} {result.what}: {verdict}")
    table = outcome(results)
    for target, row in table.items():
        say(f"{target:4} {row}")
    if arguments.json:
        content = {"table": table, "trials": [vars(result) for result in results]}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(any(result.failure for result in results))


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
