"""Trials on disks that are full or can't be written to: a small tmpfs, and one mounted read-only."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.results import Result, attempt, struck
from tests.faults.runs import SECONDS_TO_END, Run, last_round, rows, status, train, trained, write_recipe


@contextmanager
def tmpfs(place: Path, mib: int) -> Iterator[None]:
    """A file system of so many MiB at `place`. OSError where mounts are not permitted."""
    place.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip() or "mount failed")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def remount(place: Path, options: str) -> None:
    """Changes a mounted file system; to read-only as soon as no file of it is open to be written."""
    deadline = time.monotonic() + SECONDS_TO_END
    while subprocess.run(
        ["mount", "-o", f"remount,{options}", str(place)], capture_output=True, check=False
    ).returncode:
        assert time.monotonic() < deadline, f"{place} can't be mounted again with {options}"
        time.sleep(0.05)


def small_and_read_only(folder: Path) -> Iterator[Result]:
    """R9: the disk fills up while a run goes on, and has room again; it turns read-only; there is never room."""
    if os.geteuid() != 0:
        yield Result("R9", "a small disk and a read-only one", 0.0, None, skipped="mounts need root")
        return
    disk = folder / "disk"
    try:
        with tmpfs(disk, 200):
            yield from _small(folder, disk)
        out = folder / "read_only"
        # the run's own log stays open, so that not all of its folder can turn read-only
        with tmpfs(out / "checkpoints", 200):
            yield from _read_only(folder, out)
    except OSError as error:
        yield Result("R9", "a small disk and a read-only one", 0.0, None, skipped=f"mounts are not permitted: {error}")


def _small(folder: Path, disk: Path) -> Iterator[Result]:
    recipe, out, ballast = write_recipe(folder / "disk.yaml", run={"rounds": 12}), disk / "run", disk / "ballast"
    run = train(recipe, out)

    def fills_up_and_is_emptied() -> float:
        run.until(trained(out, 2))
        _fill(ballast)
        run.until(lambda: "could not be saved by rank" in run.said())
        ballast.unlink()
        assert run.end(1800) == 0, run.said()[-1500:]
        warned = [line for line in run.said().splitlines() if "could not be saved by rank" in line]
        assert len(warned) <= 2 and all("MiB are free" in line and str(out) in line for line in warned), warned
        numbers = [row["round"] for row in rows(out)]
        assert numbers == list(range(1, 13)), f"rows {numbers}"
        assert "Traceback" not in run.said(), run.said()[-1500:]
        return 0.0

    yield attempt("R9", "a disk fills up, and has room again", run, fills_up_and_is_emptied)
    recipe = write_recipe(folder / "disk.yaml", run={"rounds": 200})
    full = train(recipe, out)

    def stays_full() -> float:
        full.until(trained(out, 14))
        return struck(full, lambda: _fill(ballast), 5, "that is the third time in a row", 60.0)

    yield attempt("R9", "a disk fills up and stays full", full, stays_full)
    ballast.unlink(missing_ok=True)
    last, at = train(recipe, out), last_round(out)
    yield attempt("R9", "and has room again: the run goes on", last, lambda: _goes_on(last, out, at))


def _read_only(folder: Path, out: Path) -> Iterator[Result]:
    recipe = write_recipe(folder / "read_only.yaml", run={"rounds": 200})
    run = train(recipe, out)

    def turns_read_only() -> float:
        run.until(trained(out, 2))
        try:
            return struck(run, lambda: remount(out / "checkpoints", "ro"), 5, "in a row", 60.0)
        finally:
            remount(out / "checkpoints", "rw")

    yield attempt("R9", "the checkpoints' disk turns read-only", run, turns_read_only)
    remount(out / "checkpoints", "ro")
    try:
        words = ["memdiff", "train", recipe, "--gpus", 2, "--out", out / "checkpoints/another"]
        refused = Run([*words], folder / "refused.log")
        said = "can't be written in"
        yield attempt("R22", "a run on a read-only disk", refused, lambda: struck(refused, lambda: None, 5, said, 30.0))
    finally:
        remount(out / "checkpoints", "rw")
    last, at = train(recipe, out), last_round(out)
    yield attempt("R9", "and can be written again: the run goes on", last, lambda: _goes_on(last, out, at))


def _goes_on(run: Run, out: Path, at: int) -> float:
    run.until(trained(out, at + 1))
    assert "resuming after round" in run.said() and status(out)["state"] == "running", run.said()[-1500:]
    return 0.0


def _fill(file: Path) -> None:
    """Until no byte is free."""
    with file.open("wb", buffering=0) as target:
        try:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        target.write(bytes(size))
                except OSError:
                    continue
        finally:
            os.fsync(target.fileno())
