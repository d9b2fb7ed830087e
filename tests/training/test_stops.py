"""Requests to stop, signs of life, and how a launch's end is told; each in this process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from memdiff.errors import CheckpointError, StopRequested
from memdiff.processes import landmarks
from memdiff.processes.ancestors import LAUNCHERS
from memdiff.processes.faults import Fault
from memdiff.processes.heartbeat import STOPPING_SECONDS, WAITING, Heartbeat
from memdiff.processes.identity import identity, pending
from memdiff.processes.launched import Launched
from memdiff.processes.stops import BLOCKED, Stops, asked
from memdiff.processes.watcher import SECONDS_FOR_THE_OTHERS, Watchdog, watch
from memdiff.recipe.recipe import Recipe
from memdiff.training.launcher import outcome
from memdiff.training.run_folder import RunFolder
from tests.helpers.processes import ended

RECIPE = Recipe.model_validate(
    {"model": {"kind": "embedded"}, "method": {"kind": "reinforce"}, "reward": [{"kind": "digits"}]}
)


@pytest.fixture
def stops() -> Iterator[Stops]:
    """One that listens; `second` counts second requests."""
    before = {number: signal.getsignal(number) for number in BLOCKED}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
    made = Stops(lambda: None)
    made.listen()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BLOCKED)
def test_a_request_is_noted_or_raises_where_work_is_let_go(stops: Stops, number: int) -> None:
    """Outside `leaving` nothing happens; inside it raises, and at its entry where it came before."""
    with pytest.raises(StopRequested), stops.leaving():
        os.kill(os.getpid(), number)
        time.sleep(60)
    with pytest.raises(StopRequested), stops.leaving():
        raise AssertionError("entered, though a stop was asked for")
    stops.number = None
    os.kill(os.getpid(), number)
    assert stops.requested


def test_what_stays_raises_at_its_end(stops: Stops) -> None:
    """A collective is not left halfway; after `stay` a request is only noted."""
    done: list[str] = []
    with pytest.raises(StopRequested), stops.leaving():
        with stops.staying():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the rest of it")
        done.append("what follows")
    assert done == ["the rest of it"]
    stops.number = None
    with stops.leaving(together=True):
        stops.stay()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops.requested and not stops.together


def test_only_a_person_asks_twice(stops: Stops) -> None:
    """SIGTERM or SIGINT after another one; not what memdiff passes on, nor a terminal that hangs up twice."""
    asked: list[int] = []
    with stops.second_calls(lambda: asked.append(1)):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert asked == []
        os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]


def test_a_blocked_request_waits_and_can_be_seen() -> None:
    """As in DeepSpeed's launcher: it does not end the process, and stands in /proc."""
    code = (
        "import signal, sys, time; from memdiff.processes.stops import BLOCKED\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED); print('blocked', flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "blocked\n"
        assert pending(child.pid, BLOCKED) is None
        child.send_signal(signal.SIGTERM)
        assert pending(child.pid, BLOCKED) == signal.SIGTERM and child.poll() is None
        child.kill()


def test_a_place_is_shown_until_it_is_left() -> None:
    """The innermost one; observers are told on the way in alone."""
    shown: list[str] = []
    seen: list[str] = []
    landmarks.show(shown.append)
    landmarks.observe(seen.append)
    try:
        landmarks.go_to("round 1")
        with landmarks.at("reward a"):
            landmarks.passed()
    finally:
        landmarks._displays.remove(shown.append)
        landmarks._observers.remove(seen.append)
        landmarks._places[:] = ["starting"]
    assert shown == ["round 1", "reward a", "reward a", "round 1"] and seen == shown[:3]


def watchdog(place: str, limit: float) -> Watchdog:
    """Of a rank whose last sign of life came from `place`."""
    read, _ = os.pipe()
    os.set_blocking(read, False)
    heartbeat = Heartbeat.make()
    heartbeat.limit = limit
    heartbeat.beat(place)
    return Watchdog(Heartbeat(heartbeat.descriptor), read)


def test_a_rank_without_a_sign_of_life_is_named_with_its_place() -> None:
    """Not before its limit; without a limit never; one that waits for others lets their watchers speak first."""
    reward, now = watchdog("reward mine", 100.0), time.monotonic()
    assert reward.problem(os.getpid(), now + 90) is None
    problem = reward.problem(os.getpid(), now + 101)
    assert problem == "made no progress for 100 s (run.watchdog_seconds), at: reward mine"
    assert watchdog("reward mine", 0.0).problem(os.getpid(), now + 1e6) is None
    for place in (WAITING, "apply", "save.begin"):  # the latter by DeepSpeed's own collectives
        waits = watchdog(place, 100.0)
        assert waits.problem(os.getpid(), now + 101) is None
        assert waits.problem(os.getpid(), now + 102 + SECONDS_FOR_THE_OTHERS) is not None


@pytest.mark.parametrize("asked", [False, True])
def test_a_launcher_that_asked_its_rank_to_stop_lives_on(asked: bool, capfd: Any) -> None:
    """It has the exit code of the rank that ended first, and ends with it. A launcher that did not would wait."""
    words = [sys.executable, "-c", "import time; time.sleep(300)"]
    rank, launcher = (subprocess.Popen(words, start_new_session=True) for _ in range(2))
    with ended(rank, launcher):
        one = watchdog("reward mine", 0.1)
        one.asked = time.monotonic() if asked else None
        known = {process: identity(process.pid) or "" for process in (rank, launcher)}
        watch("rank 0", known[rank], {LAUNCHERS[0]: known[launcher]}, one)
        assert rank.wait(60) == -signal.SIGKILL
        if asked:
            assert launcher.poll() is None
        else:
            assert launcher.wait(60) == -signal.SIGKILL
    assert capfd.readouterr().err.startswith("memdiff: error[6]: rank 0 made no progress for 0.1 s")


def test_a_rank_that_was_asked_to_stop_has_less_time() -> None:
    """From the request on; not while it saves or applies."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    for place, patient in (("reward mine", False), ("save.begin", True), ("apply", True)):
        one, now = watchdog(place, 100.0), time.monotonic()
        one.requests = read
        os.write(write, bytes([signal.SIGTERM]))
        assert one.problem(os.getpid(), now + 50) is None  # asked at 50
        problem = one.problem(os.getpid(), now + 51 + STOPPING_SECONDS)
        assert (problem is None) == patient
        assert patient or "after it was asked to stop, at: reward mine" in str(problem)


def test_a_fault_strikes_once_at_its_landmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second save.begin of rank 1, and never again where a file says that it has struck."""
    monkeypatch.setenv("RANK", "1")
    text = f"full:point=save,rank=1,nth=2,file={tmp_path / 'struck'}"
    fault = Fault.parse(text)
    fault.strike("rollout")
    fault.strike("save.begin")
    with pytest.raises(OSError, match="No space left"):
        fault.strike("save.begin")
    fault.strike("save.begin")
    again = Fault.parse(text)
    for _ in range(3):
        again.strike("save.begin")
    monkeypatch.setenv("RANK", "0")
    Fault.parse("kill:point=save,rank=1").strike("save.begin")


class Ended:
    """A launcher's process that has ended."""

    pid = 0

    def poll(self) -> int:
        return 0


def launched(stops: Stops, first_gone: str | None) -> Launched:
    made = Launched(cast(Any, Ended()), stops)
    made.first_gone = first_gone and first_gone.removeprefix("cleared ")
    made.cleared = made.first_gone != first_gone
    return made


ENDS = {
    # name: (asked, first rank gone, launcher's code, log) -> (exit code, words)
    "killed": (False, "rank 1 (pid 7)", 247, "", 6, "rank 1 (pid 7) was killed by SIGKILL; nothing had been trained"),
    "lost": (False, "rank 1 (pid 7)", 247, "memdiff: error[6]: lost the connection to another rank: x", 6,
             "rank 1 (pid 7) was killed by SIGKILL"),
    "said": (False, "rank 0 (pid 7)", 3, "noise\nmemdiff: error[3]: reward a gave nan", 3, "reward a gave nan"),
    "traceback": (False, "rank 0 (pid 7)", 1, "[rank0]: TypeError: no such thing", 6,
                  "rank 0 (pid 7) ended without a word (launcher exit code 1, TypeError: no such thing); see "),
    "asked": (True, "rank 1 (pid 7)", -9, "memdiff: error[6]: rank 1 made no progress", 75, "stopped on request: "),
    "asked, disk full": (True, None, 5, "memdiff: error[5]: round 3 could not be saved", 5, "round 3 could not be"),
    "SIGTERM to a rank": (False, None, 241, "", 75, "stopped on request: nothing had been trained"),
    "Ctrl-C to a rank": (False, None, 254, "", 75, "stopped on request: nothing had been trained"),
    "killed, then cleared": (False, "cleared rank 1 (pid 7)", -9,
                             "memdiff: error[6]: deepspeed's launch.py (pid 5) is gone, so rank 0 ends too", 6,
                             "rank 1 (pid 7) was killed by SIGKILL; nothing had been trained"),
    "traceback, then cleared": (False, "cleared rank 1 (pid 7)", -9, "[rank1]: TypeError: no such thing", 6,
                                "rank 1 (pid 7) ended without a word (launcher exit code -9, TypeError: no such"),
    "killed, another's traceback, then cleared": (False, "cleared rank 0 (pid 7)", -9,
                                                  "[rank1]: RuntimeError: Rank 0 left", 6,
                                                  "rank 0 (pid 7) was killed by SIGKILL; nothing had been trained"),
    "killed, and the other is asked by launch.py": (False, "rank 0 (pid 7)", 247, f"memdiff: stop[75]: {asked('1')}",
                                                    6, "rank 0 (pid 7) was killed by SIGKILL; nothing had been"),
    "a rank alone is asked": (False, "rank 1 (pid 7)", 75, f"memdiff: stop[75]: {asked('1')}", 75,
                              "stopped on request: nothing had been trained"),
    "a rank alone is asked, then cleared": (False, "cleared rank 1 (pid 7)", -9, f"memdiff: stop[75]: {asked('1')}",
                                            75, "stopped on request: nothing had been trained"),
    "runner ended": (False, None, -15, "", 75, "stopped on request: nothing had been trained"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_how_a_launch_ended_is_one_line(name: str, stops: Stops, tmp_path: Path, capsys: Any) -> None:
    """Exit code, stderr and status.json agree."""
    asked, first_gone, code, log, exit_code, words = ENDS[name]
    folder = RunFolder(tmp_path)
    folder.write_status("running", round_number=0)
    (tmp_path / "launcher.log").write_text(log)
    if asked:
        stops.ask(signal.SIGTERM)
    assert outcome(folder, tmp_path / "launcher.log", launched(stops, first_gone), code) == exit_code
    said = capsys.readouterr().err
    kind = "stop" if exit_code == 75 else "error"
    assert said.startswith(f"memdiff: {kind}[{exit_code}]: {words}") and said.count("\n") == 1
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["exit_code"] == exit_code and status["state"] == ("stopped" if exit_code == 75 else "failed")


def test_a_row_that_does_not_fit_comes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of it stays, so that the file can be read; the row is not lost."""
    folder = RunFolder(tmp_path)
    folder.add_row({"round": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            folder.add_row({"round": 2})
        assert [row["round"] for row in folder.rows()] == [1]
    folder.add_row({"round": 3})
    assert [row["round"] for row in folder.rows()] == [1, 2, 3]


def test_a_status_is_right_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the old one goes, and nothing half written stays; a damaged one counts as none."""
    folder = RunFolder(tmp_path)
    folder.write_status("running", round_number=1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    folder.write_status("failed", round_number=1)
    assert list(tmp_path.iterdir()) == [] and folder.status() == {}
    for damaged in ("[1]", "null", '"x"', "{", "\xff"):
        (tmp_path / "status.json").write_text(damaged)
        assert folder.status() == {}


DAMAGED = ("", "[1]", "{", "a: [", "\x00", "model: 1\n:", "&a [*a]", "x: !!python/object:os.system {}", "3")


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_config_is_one_line(text: str, tmp_path: Path) -> None:
    """Exit code 5 or 2 by the file's name, and the way out; nothing is run."""
    folder = RunFolder(tmp_path / "run")
    folder.prepare(RECIPE, "auto").release()
    folder.write_status("running", round_number=1)  # before that the recipe may be corrected, and is written anew
    (folder.path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml can't be read.*--resume never") as raised:
        folder.prepare(RECIPE, "auto")
    assert "\n" not in str(raised.value)


def test_rows_without_a_usable_round_go_at_a_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"round": 1}\n{"update": 3}\n{"round": "x"}\n{"round": null}\n{"round": 2}\n')
    folder.drop_rows_after(1)
    assert folder.rows() == [{"round": 1}]
