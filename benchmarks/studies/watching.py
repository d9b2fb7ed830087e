"""What watchdog, lock, verification and check for divergence cost an update: `python -m benchmarks.studies.watching`.

The embedded digits model, all of its weights, REINFORCE over 25 steps with 16 images a round, one rank, one thread, a
checkpoint after every round, which is the dearest setting. Differences of two whole runs drown in what else the
machine does; so what each guard does is counted in a real run, and what one time of it takes is measured alone, both
in CPU seconds. Writes results/watching.json and watching.md; the last line is JSON.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.provenance import of_machine
from benchmarks.studies.written import write_study
from memdiff.digits.paths import DIGITS_DDPM
from memdiff.engine import checkpoint, divergence
from memdiff.processes import landmarks
from memdiff.processes.file_lock import FileLock
from memdiff.processes.heartbeat import Heartbeat
from memdiff.processes.identity import PROC, identity
from memdiff.processes.stops import Stops, exit_at_once
from memdiff.recipe.reading import check_recipe
from memdiff.training import start
from memdiff.training.run_folder import RunFolder

ROUNDS, WARM = 5, 1
RECIPE = {
    "model": {"kind": "embedded"},
    "sampler": {"steps": 25},
    "method": {"kind": "reinforce"},
    "reward": [{"kind": "digits", "mode": "probability"}],
    "evaluate": {"every": 0},
    "run": {"rounds": ROUNDS, "images_per_round": 16, "save_every": 1},
}
SECONDS_WATCHED = 20.0


@dataclass
class Counted:
    """Calls of a function, and the CPU seconds that they took together."""

    calls: int = 0
    seconds: float = 0.0
    inside: bool = field(default=False, repr=False)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted; what it calls of itself is its own."""

        def counted(*arguments: Any, **more: Any) -> Any:
            if self.inside:
                return function(*arguments, **more)
            self.inside, begun = True, time.process_time()
            try:
                return function(*arguments, **more)
            finally:
                self.inside = False
                self.calls, self.seconds = self.calls + 1, self.seconds + time.process_time() - begun

        return counted


def cpu_seconds_of(work: Callable[[], Any], times: int) -> float:
    """Of one call, over so many."""
    work()
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times


def a_run(folder: Path) -> tuple[float, float, dict[str, int], dict[str, Counted]]:
    """CPU seconds and wall seconds of a round, landmarks of a round, and what verification took."""
    counts, marks = {"landmarks": 0}, []

    def seen(place: str) -> None:
        counts["landmarks"] += 1
        if place.startswith("round "):
            marks.append((time.process_time(), time.monotonic(), dict(counts)))

    landmarks.observe(seen)
    verified = {"verification": Counted()}
    for name in ("_write_manifest", "_defect"):
        setattr(checkpoint, name, verified["verification"].around(getattr(checkpoint, name)))
    recipe = check_recipe(RECIPE, source="this study")
    code = start.run_here(recipe, RunFolder(folder), "auto", None, Stops(exit_at_once))
    assert code == 0, code
    first, last = marks[WARM], marks[-1]
    rounds = len(marks) - 1 - WARM
    a_round = {key: (last[2][key] - first[2][key]) // rounds for key in counts}
    return (last[0] - first[0]) / rounds, (last[1] - first[1]) / rounds, a_round, verified


def watcher_share() -> float:
    """CPU seconds a second of a rank's watcher, which looks four times a second."""
    own, beat = identity(os.getpid()), Heartbeat.make()
    assert own is not None
    beat.beat("here")
    read, write = os.pipe()
    options = [f"--page={beat.descriptor}", f"--requests={read}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "memdiff.processes.watcher", *options, f"rank 0={own}", f"memdiff={own}"],
        pass_fds=(beat.descriptor, read),
    )
    time.sleep(3)  # until Python has started
    before = _cpu_of(process.pid)
    time.sleep(SECONDS_WATCHED)
    share = (_cpu_of(process.pid) - before) / SECONDS_WATCHED
    process.kill()
    process.wait()
    os.close(write)
    return share


def _cpu_of(pid: int) -> float:
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Counts in a run, measures alone, and multiplies."""
    machine = of_machine()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        update, wall, a_round, verified = a_run(folder / "run")
        stops, beat = Stops(exit_at_once), Heartbeat.make()
        landmarks.show(beat.beat)
        landmarks.observe(lambda _: stops.check())
        landmark = cpu_seconds_of(landmarks.passed, 20000)
        parameters = list(load_file(next(DIGITS_DDPM.rglob("*.safetensors"))).values())
        divergence_once = cpu_seconds_of(lambda: divergence.sums_of_bits(parameters), 200)

        def locked() -> None:
            with FileLock(folder / "lock") as lock:
                lock.acquire()

        costs = {
            "watchdog: landmarks": a_round["landmarks"] * landmark,
            "watchdog: the watcher beside the rank": watcher_share() * wall,
            "divergence": divergence_once,
            "verification of a checkpoint": verified["verification"].seconds / ROUNDS,
            "lock, once a run": cpu_seconds_of(locked, 200) / ROUNDS,
        }
    rows = {name: {"seconds": seconds, "share": seconds / update} for name, seconds in costs.items()}
    total = sum(costs.values()) / update
    lines = [f"| {name} | {1e3 * row['seconds']:.2f} | {100 * row['share']:.2f} % |" for name, row in rows.items()]
    table = "| guard | CPU ms an update | of it |\n|---|---|---|\n" + "\n".join(lines)
    table += f"\n| all | {1e3 * sum(costs.values()):.2f} | {100 * total:.2f} % |\n"
    summary = {
        "update_cpu_seconds": update, "update_seconds": wall, "landmarks_a_round": a_round["landmarks"],
        "seconds_a_landmark": landmark, "parameters": sum(p.numel() for p in parameters), "share": total,
    }  # fmt: skip
    write_study("watching", "python -m benchmarks.studies.watching", machine, summary, {"rows": rows}, table)


if __name__ == "__main__":
    main()
