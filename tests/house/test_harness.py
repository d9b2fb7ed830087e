"""What the tests stand on: children that end, operators that are built once."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import operators, processes, ranks
from tests.helpers.operators import build_operators
from tests.helpers.processes import ended, run


def is_alive(pid: int) -> bool:
    """Whether the process runs: one that has ended and was not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_what_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its limit, and waited for: a `subprocess is still running` would be an error here."""
    monkeypatch.setattr(processes, "SECONDS_TO_STOP", 0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        run(["sleep", "600"], seconds=0.1)


def test_the_children_of_what_is_ended_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where SIGTERM is ignored."""
    monkeypatch.setattr(processes, "SECONDS_TO_STOP", 0.2)
    command = ["sh", "-c", "trap '' TERM; sleep 600 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        with ended(process):
            child = int(process.stdout.readline())
            assert is_alive(child)
    assert process.returncode is not None
    deadline = time.monotonic() + 60  # a kill takes effect in its own time
    while is_alive(child):
        assert time.monotonic() < deadline


def test_a_rank_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, with its own last words, although the others would wait for it until their limit."""
    started: list[subprocess.Popen] = []
    original = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen:
        last = options["env"]["RANK"] == "2"  # pyright: ignore[reportIndexIssue]
        script = "raise SystemExit('out of luck')" if last else "import time; time.sleep(600)"
        started.append(original([sys.executable, "-c", script], **options))  # pyright: ignore
        return started[-1]

    monkeypatch.setattr(ranks.subprocess, "Popen", start)
    with pytest.raises(AssertionError, match=r"rank 2 ended with 1:\nout of luck"):
        ranks.run_ranks("none", 3, {}, tmp_path)
    assert [process.returncode is None for process in started] == [False] * 3


def test_operators_are_built_once_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed build is tried again by the next session; a good one is not; a file that was deleted is made again."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    said: list[str] = []

    def build(script: str) -> list[str]:
        said.clear()
        monkeypatch.setattr(operators, "BUILD", script)
        build_operators(said.append)
        return said

    make = f"from pathlib import Path; folder = Path({str(tmp_path)!r}, 'cpu_adam'); folder.mkdir(exist_ok=True); "
    make += "(folder / 'cpu_adam.so').touch()"
    assert "no compiler here" in build("raise SystemExit('no compiler here')")[-1]
    assert "compiled in" in build(make)[-1]
    assert build("raise SystemExit(1)") == []
    (tmp_path / "cpu_adam" / "cpu_adam.so").unlink()
    assert "compiled in" in build(make)[-1]
