"""Whole runs under DeepSpeed's real launcher, killed with kill -9: nothing lives on, and nobody trains beside them."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from memdiff.errors import CheckpointError
from memdiff.processes.ancestors import LAUNCH, RUNNER
from memdiff.processes.identity import PROC, all_pids, identity, kill, words_of
from memdiff.recipe.recipe import Recipe
from memdiff.training.launcher import free_port
from memdiff.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_START, SECONDS_TO_END = 300, 30  # far more than is needed: the machine may be busy
CONTENT = {
    "model": {"kind": "embedded"},
    "sampler": {"steps": 4},
    "method": {"kind": "reinforce"},
    "reward": [{"kind": "digits", "mode": "probability"}],
    "evaluate": {"every": 0},
    "run": {"rounds": 5000, "images_per_round": 4, "save_every": 5000},
}


class Started:
    """A command, and all processes that follow from it: they have a mark in their environment."""

    def __init__(self, folder: Path, *command: object, **environment: str) -> None:
        self.mark = f"MEMDIFF_TEST={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", name: value} | environment, stdout=log, stderr=log,
            )  # fmt: skip

    def alive(self) -> list[int]:
        """Those that live still."""
        return [pid for pid in all_pids() if self._marked(pid) and identity(pid) is not None]

    def one(self, word: str) -> int:
        """The first of them with this word in its command line."""
        return next(pid for pid in sorted(self.alive()) if word in words_of(pid))

    def until(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            state = f"{[words_of(pid) for pid in self.alive()]}\n{self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, state
            time.sleep(0.05)

    def until_gone(self) -> None:
        self.until(lambda: not self.alive(), SECONDS_TO_END)
        self.process.wait(timeout=SECONDS_TO_END)

    def _marked(self, pid: int) -> bool:
        try:
            return self.mark.encode() in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a command; whatever is left of it after the test is killed."""
    started: list[Started] = []

    def begin(*command: object) -> Started:
        started.append(Started(tmp_path, *command))
        return started[-1]

    yield begin
    for one in started:
        kill(one.alive())
        one.process.wait()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(CONTENT))
    return file


def trains(run: Path) -> Callable[[], bool]:
    """Whether a round is done."""
    metrics = run / "metrics.jsonl"
    return lambda: metrics.is_file() and metrics.stat().st_size > 0


def test_a_run_that_goes_on_is_alone_and_ends_with_memdiff(recipe: Path, tmp_path: Path, start: Callable) -> None:
    """A second start is refused by pid and host, and moves nothing; after kill -9 of the first nothing of it lives."""
    run = tmp_path / "run"
    first = start("memdiff", "train", recipe, "--gpus", 2, "--out", run)
    first.until(trains(run), SECONDS_TO_START)
    command = [sys.executable, "-m", "memdiff", "train", recipe, "--gpus", "2", "--out", run, "--resume", "never"]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_TO_START)
    assert second.returncode == 5 and "starting" not in second.stdout  # where checks are slow it says that it checks
    assert second.stderr.startswith(
        f"memdiff: error[5]: {run} is in use: process {first.process.pid} on {socket.gethostname()}"
    )
    assert second.stderr.count("\n") == 1
    assert first.process.poll() is None and not list(tmp_path.glob("run.previous*"))
    os.kill(first.process.pid, signal.SIGKILL)
    first.until_gone()
    # One rank's watcher may be first: the other rank then ends by the lost connection.
    assert f"memdiff (pid {first.process.pid}) is gone, so rank" in (run / "launcher.log").read_text()
    # A killed process counts as ended when its first thread has; its others may hold the folder a moment longer.
    first.until(lambda: is_free(run), SECONDS_TO_END)


def is_free(run: Path) -> bool:
    """Whether a run may go on in the folder."""
    try:
        RunFolder(run).prepare(Recipe.model_validate(CONTENT), "must").release()
    except CheckpointError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("killed", [RUNNER, LAUNCH])
def test_a_run_ends_with_each_of_deepspeeds_processes(
    killed: str, recipe: Path, tmp_path: Path, start: Callable
) -> None:
    """memdiff names the one that was killed, by exit code 6; DeepSpeed's own runner says 0 when launch.py was."""
    run = tmp_path / "run"
    started = start("memdiff", "train", recipe, "--gpus", 2, "--out", run)
    started.until(trains(run), SECONDS_TO_START)
    victim = started.one(killed)
    os.kill(victim, signal.SIGKILL)
    started.until_gone()
    assert started.process.returncode == 6
    assert f"(pid {victim}) is gone" in started.log.read_text()
    assert RunFolder(run).status()["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [RUNNER, LAUNCH])
def test_ranks_of_the_bare_launcher_end_with_it(killed: str, recipe: Path, tmp_path: Path, start: Callable) -> None:
    """`deepspeed --module memdiff train`: no memdiff stands above the runner."""
    run = tmp_path / "run"
    options = ["--num_gpus", 2, "--master_port", free_port(), "--module"]
    started = start(RUNNER, *options, "memdiff", "train", recipe, "--out", run)
    started.until(trains(run), SECONDS_TO_START)
    second = subprocess.run(
        [sys.executable, "-m", "memdiff", "train", recipe, "--gpus", "2", "--out", run],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_TO_START,
    )  # fmt: skip
    assert second.returncode == 5 and "is in use: process" in second.stderr
    victim = started.one(killed)
    os.kill(victim, signal.SIGKILL)
    started.until_gone()
    assert f"(pid {victim}) is gone, so rank" in started.log.read_text()


@pytest.mark.slow
def test_sampling_processes_end_with_memdiff(tmp_path: Path, start: Callable) -> None:
    """kill -9 of `memdiff sample --gpus 2` leaves no process, and a folder that the next call takes."""
    out = tmp_path / "samples"
    started = start("memdiff", "sample", "digits", "--gpus", 2, "--num-images", 5000, "--steps", 50, "--out", out)
    started.until(lambda: list(out.glob("image_*.png")), SECONDS_TO_START)
    assert len(started.alive()) == 3
    os.kill(started.process.pid, signal.SIGKILL)
    started.until_gone()
    again = start("memdiff", "sample", "digits", "--num-images", 2, "--steps", 2, "--out", out)
    assert again.process.wait(timeout=SECONDS_TO_START) == 0, again.log.read_text()
    assert len(list(out.glob("image_*.png"))) == 2
