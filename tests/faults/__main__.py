"""`python -m tests.faults [--all | --soak] [--only NAMES] [--jobs N] [--seconds S] [--json FILE]`: trials, and a table.

They strike real runs. Exit code 1 where one failed. Without a flag: those of every commit, in minutes. `--all`: what
takes an hour or needs a machine of one's own (root, namespaces, mounts); `--soak`: hours.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tests.faults import disks, evaluations, mistakes, several_hosts, soak, trials
from tests.faults.results import Result, Trial, as_markdown, outcome

EACH_COMMIT: dict[str, Trial] = {
    "points": trials.kills_before_the_update,
    "saves": trials.kills_in_a_save,
    "stops": trials.stops,
    "frozen": trials.frozen_and_hung,
    "hosts": several_hosts.on_this_host,
    "early": trials.early_stops,
    "orphans": trials.orphans,
    "full": trials.failing_writes,
}
MORE: dict[str, Trial] = {
    "stops_more": trials.more_stops,
    "frozen_more": trials.more_hung,
    "orphans_more": trials.more_orphans,
    "namespaces": several_hosts.in_namespaces,
    "disks": disks.small_and_read_only,
    "loading": trials.lost_while_another_works,
    "rewards": trials.raising_rewards,
    "evaluations": evaluations.killed_and_full,
    "mistakes": mistakes.under_the_bare_launcher,
}
SOAK: dict[str, Trial] = {"methods": soak.other_methods, "random": soak.random_kills}


def main() -> int:
    """Runs the trials, some at the same time, a line each."""
    every = EACH_COMMIT | MORE | SOAK
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="also those that need more time or rights")
    parser.add_argument("--soak", action="store_true", help="the long ones")
    parser.add_argument("--only", default="", help=f"of {', '.join(every)}; separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--seconds", type=float, default=soak.SECONDS, help="of kills at random moments")
    parser.add_argument("--json", type=Path, help="also write the results here")
    arguments = parser.parse_args()
    every["random"] = partial(soak.random_kills, seconds=arguments.seconds)
    chosen = SOAK if arguments.soak else EACH_COMMIT | MORE if arguments.all else EACH_COMMIT
    names = arguments.only.split(",") if arguments.only else list(chosen)
    results: list[Result] = []
    begun = time.monotonic()

    def all_of(name: str, folder: Path) -> None:
        place = folder / name
        place.mkdir()
        for result in every[name](place):
            results.append(result)
            say(f"{time.monotonic() - begun:6.0f} s  {result.target:4} {result.what}: {verdict(result)}")

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        for done in [pool.submit(all_of, name, Path(folder)) for name in names]:
            done.result()
    table = outcome(results)
    for line in as_markdown(table):
        say(line)
    failures = sum(result.failure is not None for result in results)
    say(f"{len(results)} trials, {failures} failed, {time.monotonic() - begun:.0f} s")
    if arguments.json:
        content = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count(), "load": os.getloadavg(),
            "seconds": time.monotonic() - begun, "table": table, "trials": [vars(result) for result in results],
        }  # fmt: skip
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(failures > 0)


def verdict(result: Result) -> str:
    """What a line says of it."""
    if result.skipped:
        return f"skipped: {result.skipped}"
    figures = f" {result.figures}" if result.figures else ""
    return f"failed: {result.failure}" if result.failure is not None else f"held, {result.seconds:.1f} s{figures}"


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
