"""DeepSpeed's operators are built by one process at a time, and a lock that a killed build left stops nobody."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from memdiff.doctor import compiler
from memdiff.doctor.devices import DeviceFacts
from memdiff.engine import operators
from memdiff.engine.build_lock import LOCK, clear_lock, holders, is_stale
from memdiff.processes.file_lock import FileLock, Holder
from memdiff.processes.identity import identity
from memdiff.runtime import announce

ROOT = Path(__file__).resolve().parents[2]
# As torch does: the lock's file is made, and is open until the build is done.
BUILDS = """
import os, sys, time
from pathlib import Path
from memdiff.processes.file_lock import FileLock
folder = Path(sys.argv[1])
FileLock(folder.with_name(folder.name + ".lock")).acquire(wait=True)
os.open(folder / "lock", os.O_CREAT | os.O_EXCL)
print("building", flush=True)
time.sleep(300)
"""


class Builder:
    """In the place of a DeepSpeed OpBuilder; fails where torch would wait for ever for a lock that is there."""

    NAME = "cpu_adam"

    def __init__(self, folder: Path) -> None:
        self.folder, self.loads = folder, 0

    def load(self) -> None:
        (self.folder / LOCK).touch(exist_ok=False)
        self.loads += 1
        (self.folder / f"{self.NAME}.so").touch()
        (self.folder / LOCK).unlink()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / Builder.NAME).mkdir()
    return tmp_path / Builder.NAME


def building(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDS, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "building\n"
    return process


def test_a_lock_that_nobody_holds_is_cleared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing: compiling is said first. Built: nothing is said. A stale lock beside a built one goes too."""
    builder = Builder(folder)
    (folder / LOCK).touch()
    assert is_stale(folder)
    operators.load_operator(builder)
    removed, compiling = capsys.readouterr().out.splitlines()
    assert removed == f"removed {folder / LOCK}, which a build that was stopped had left"
    assert compiling.startswith("compiling DeepSpeed's cpu_adam")
    operators.load_operator(builder)
    assert capsys.readouterr().out == ""
    (folder / LOCK).touch()
    operators.load_operator(builder)
    assert capsys.readouterr().out.splitlines() == [removed]
    assert builder.loads == 3
    assert [path.name for path in folder.parent.iterdir()] == [Builder.NAME]


def test_a_killed_build_is_taken_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While the builder lives the others wait; kill -9, and the next builds."""
    builder = Builder(folder)
    with building(folder) as other:
        waiting = threading.Thread(target=operators.load_operator, args=(builder,))
        waiting.start()
        time.sleep(0.3)
        assert holders(folder) == [other.pid] and not is_stale(folder)
        assert waiting.is_alive() and builder.loads == 0
        other.kill()
        waiting.join(timeout=60)
    assert builder.loads == 1
    assert "compiling" in capsys.readouterr().out


def test_a_compiler_that_outlives_its_builder_is_waited_for(folder: Path) -> None:
    """It writes where the next build would: the lock is held as long as it stands in the folder."""
    (folder / LOCK).touch()
    shutil.copy(shutil.which("sleep") or "/bin/sleep", folder.parent / "cc1plus")
    said: list[str] = []
    with subprocess.Popen([folder.parent / "cc1plus", "300"], cwd=folder) as orphan:
        while not holders(folder):
            time.sleep(0.01)
        threading.Timer(0.5, orphan.kill).start()
        clear_lock(folder, said.append)
        assert orphan.wait(timeout=60) != 0
    assert said[0].startswith(f"waiting for process {orphan.pid}, which builds in {folder}")
    assert said[1].startswith("removed") and not (folder / LOCK).exists()


def test_a_rank_of_the_same_run_is_waited_for_without_a_word(folder: Path) -> None:
    """It says itself that it compiles. This process stands for such a rank, which has the same parent; its child is
    another run's."""
    lock = FileLock(folder / "build.lock")
    with lock:
        lock.acquire(wait=True)
        assert operators._whose(lock, "cpu_adam") is None
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        process = identity(other.pid)
        (folder / "build.lock").write_text(json.dumps(asdict(Holder.here(process or ""))))
        said = operators._whose(lock, "cpu_adam")
        other.kill()
    assert said is not None and said.startswith(f"waiting for process {other.pid} on ") and said.endswith("cpu_adam")


def test_slow_loading_is_said(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """An operator that is there may still be built anew, for another compiler or ninja."""

    class Slow(Builder):
        def load(self) -> None:
            while not capsys.readouterr().out.startswith("compiling"):
                time.sleep(0.01)

    monkeypatch.setattr(announce, "SECONDS_IN_SILENCE", 0.05)
    (folder / "cpu_adam.so").touch()
    operators.load_operator(Slow(folder))


def test_doctor_tells_a_build_from_what_one_left(folder: Path) -> None:
    """A build that goes on is no fault; a lock that nobody holds is one for other programs."""
    facts = DeviceFacts(extensions=str(folder.parent))
    with building(folder) as other:
        try:
            states = compiler.probe_operators(str(folder.parent), compiler.OPS_GPU)
            assert states == {"cpu_adam": f"being built by process {other.pid}"}
            assert compiler.judge_operators(facts, states).state == "ok"
        finally:
            other.kill()
    left = compiler.probe_operators(str(folder.parent), compiler.OPS_GPU)
    finding = compiler.judge_operators(replace(facts), left)
    assert left == {"cpu_adam": "left locked"} and finding.state == "warn" and str(folder / LOCK) in finding.advice
