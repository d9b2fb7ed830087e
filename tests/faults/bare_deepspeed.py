"""`python -m tests.faults.bare_deepspeed [--only R7,R10] [--json FILE]`: the same strikes on plain DeepSpeed training.

Nothing is judged. Each row says what happened within a minute, for docs/reliability.md to stand beside ours.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memdiff.processes.ancestors import LAUNCH
from memdiff.processes.identity import kill, words_of
from tests.faults.runs import Run

WATCHED_SECONDS = 60.0
WORKER = "tests.workers.plain_deepspeed"
CORRUPTIONS = 12
DAMAGES = ("truncated", "a bit flipped", "deleted", "that of the round before")


class Plain(Run):
    """`deepspeed --num_gpus 2 --module tests.workers.plain_deepspeed`."""

    def __init__(self, folder: Path, rounds: int, **environment: str) -> None:
        self.port = _port()
        words = ["deepspeed.launcher.runner", "--log_level", "error", "--num_gpus", 2, "--master_port", self.port]
        log = folder.with_name(f"{folder.name}_{time.monotonic_ns()}.log")
        super().__init__([*words, "--module", WORKER, folder, rounds], log, DS_ACCELERATOR="cpu", **environment)
        self.folder = folder

    def rank(self, number: int) -> int | None:
        """Processes that the launcher numbered."""
        word = f"--local_rank={number}"
        return next((pid for pid in self.alive() if {WORKER, word} <= set(words_of(pid))), None)

    def pids_of(self, number: int) -> list[int]:
        """The rank's process, which has to be there."""
        pid = self.rank(number)
        assert pid is not None, f"there is no rank {number}"
        return [pid]

    def buffers(self) -> list[Path]:
        """What its ranks left in shared memory."""
        return list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{self.port}_*"))

    def clear(self) -> None:
        """And no shared memory either."""
        super().clear()
        for buffer in self.buffers():
            buffer.unlink(missing_ok=True)

    def further(self, rounds: int) -> None:
        """Waits for so many."""
        self.until(lambda: self.said().count("\nround ") + self.said().startswith("round ") >= rounds)


def _port() -> int:
    from memdiff.processes.host import free_port

    return free_port()


def came_of(run: Plain) -> dict[str, Any]:
    """Seconds until all of it had ended, or what lived after a minute; the exit code; whether a line says why."""
    begun = time.monotonic()
    while run.alive() and time.monotonic() - begun < WATCHED_SECONDS:
        run.process.poll()
        time.sleep(0.1)
    left = [" ".join(words_of(pid)[-3:])[:60] for pid in run.alive()]
    seconds = round(time.monotonic() - begun, 1)
    try:
        code = run.process.wait(1)  # one that has just ended may not have been waited for
    except subprocess.TimeoutExpired:
        code = None
    shared = sum(buffer.stat().st_size for buffer in run.buffers())
    run.clear()
    return {
        "exit_code": code, "seconds": None if left else seconds, "left": len(left),
        "shared_memory_mib": round(shared / 2**20),
    }  # fmt: skip


def struck(folder: Path, strike: Callable[[Plain], Any], **environment: str) -> dict[str, Any]:
    """Two rounds, a strike, and what came of it; then what the same command goes on from."""
    run = Plain(folder, 100000, **environment)
    if not environment:
        run.further(2)
    strike(run)
    result = came_of(run)
    latest = (folder / "latest").read_text() if (folder / "latest").exists() else None
    again = Plain(folder, 0)
    again.until(lambda: again.process.poll() is not None)
    again.orphans(60)
    said = [line for line in again.said().splitlines() if line.startswith("begins after") or "Error" in line]
    again.clear()
    return result | {"latest": latest, "then": (said[0] if said else "nothing")[:160]}


def wait_for_kill(run: Plain) -> None:
    """A fault in the script itself: until rank 1 is there, and gone or frozen."""
    run.until(lambda: run.rank(1) is not None)
    deadline = time.monotonic() + 300
    while run.rank(1) is not None and time.monotonic() < deadline:
        time.sleep(0.05)


def corrupted(folder: Path) -> dict[str, int]:
    """R10: one file of the newest checkpoint damaged at a time, then the same command: what it does."""
    draw, outcomes = random.Random(0), Counter[str]()
    run = Plain(folder, 3)
    run.until(lambda: run.process.poll() is not None)
    run.clear()
    for number in range(CORRUPTIONS):
        copy = folder.with_name(f"copy_{number}")
        shutil.copytree(folder, copy)
        file = draw.choice(sorted(path for path in (copy / "round_3").rglob("*") if path.is_file()))
        content = bytearray(file.read_bytes())
        match DAMAGES[number % len(DAMAGES)]:
            case "truncated":
                file.write_bytes(content[: len(content) // 2])
            case "a bit flipped":
                content[draw.randrange(len(content) // 2, len(content))] ^= 1 << draw.randrange(8)
                file.write_bytes(bytes(content))
            case "deleted":
                file.unlink()
            case _:
                shutil.copy(copy / "round_2" / file.name, file)
        again = Plain(copy, 0)
        again.until(lambda again=again: again.process.poll() is not None)
        again.orphans(60)
        said = next((line for line in again.said().splitlines() if line.startswith("begins after")), "")
        older = "begins after 3" not in said and "begins after" in said
        came = "went on from an older one" if older else "went on from it" if said else "refused"
        outcomes[f"{DAMAGES[number % len(DAMAGES)]}: {came}"] += 1
        again.clear()
    return dict(outcomes)


def main() -> int:
    """A row a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="R", help="of R5, R6, R7, R8, R10, R11; separated by commas")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen = tuple(arguments.only.split(","))
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        strikes: dict[str, tuple[Callable[[Plain], Any], dict[str, str]]] = {
            "R5 kill -9 of rank 1": (lambda run: kill(run.pids_of(1)), {}),
            "R6 SIGSTOP of rank 1": (lambda run: kill(run.pids_of(1), signal.SIGSTOP), {}),
            "R7 SIGTERM to the runner": (lambda run: kill([run.process.pid], signal.SIGTERM), {}),
            "R7 SIGTERM to launch.py": (lambda run: kill(run.with_word(LAUNCH)[-1:], signal.SIGTERM), {}),
            "R8 kill -9 of the runner": (lambda run: kill([run.process.pid]), {}),
            "R8 kill -9 of launch.py": (lambda run: kill(run.with_word(LAUNCH)[-1:]), {}),
            "R11 kill -9 of rank 1 in a save": (
                wait_for_kill, {"PLAIN_FAULT": "kill:rank=1,round=3,point=save"}
            ),
        }  # fmt: skip
        for number, (name, (strike, environment)) in enumerate(strikes.items()):
            if not name.startswith(chosen):
                continue
            rows[name] = struck(folder / f"run_{number}", strike, **environment)
            sys.stdout.write(f"{name}: {json.dumps(rows[name])}\n")
            sys.stdout.flush()
        if "R10".startswith(chosen):
            rows["R10"] = corrupted(folder / "run")
            sys.stdout.write(f"R10: {json.dumps(rows['R10'])}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
