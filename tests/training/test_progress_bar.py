"""A run's progress on a real terminal: bars and lines fit its width, and the end's time stands at the run's own bar."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from memdiff.runtime.units import duration
from memdiff.training.pace import Pace
from memdiff.training.progress import RunProgress
from tests.helpers.processes import ROOT, ended

CHILD = """
import time
from memdiff.training.progress import RunProgress

row = {"reward_mean": 1.234, "reward/gender": 0.5, "reward/image_reward": -0.43, "images_in_round": 200,
       "seconds_rollout": 100.0, "seconds_reward": 3.0, "seconds_train": 200.0, "peak_bytes": None, "grad_norm": 0.1,
       "skipped": 0}
now = [0.0]
with RunProgress(rounds=500, shown=True) as progress:
    progress._pace._now = lambda: now[0]
    progress.begin_round(1, 100)
    now[0] += 900
    progress.advance(100)
    progress.done(1, row)
    progress.begin("evaluating", 100)
    progress.advance(30)
    progress._progress.refresh()
"""


def drawn_on(columns: int, **names: str) -> str:
    """Everything that was written to a terminal of that width, with `names` in the environment."""
    terminal, child_side = pty.openpty()
    fcntl.ioctl(child_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    for name in ("COLUMNS", "JPY_PARENT_PID"):
        environment.pop(name, None)
    environment |= names
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], env=environment, stdin=child_side, stdout=child_side, stderr=child_side
    )
    os.close(child_side)
    drawn = b""
    with ended(process):
        try:
            while part := os.read(terminal, 65536):
                drawn += part
        except OSError:  # the child has closed its side
            pass
        os.close(terminal)
        assert process.wait() == 0, drawn.decode()
    return drawn.decode()


def shown_on(columns: int) -> list[str]:
    """The same line by line, without colours and moves."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn_on(columns))
    return [line.rstrip() for line in re.split(r"[\r\n]+", text)]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_run_on_a_terminal(columns: int) -> None:
    """900 s a round, 499 left: an end with its day. It stands at the rounds' bar, once, and no word is broken."""
    lines = shown_on(columns)
    assert max(map(len, lines)) <= columns
    ends = [line for line in lines if re.search(r"rounds +[━╸╺]+ +0% .*ends about \w{3} \d\d:\d\d$", line)]
    assert ends, lines
    assert not any("ends about" in line for line in lines if "evaluating" in line)
    said = " ".join(" ".join(lines).split())
    assert "gender 0.500 image_reward -0.430 0.66 images/s" in said


def test_a_command_that_a_notebook_starts() -> None:
    """Its shell lines have a terminal too, which shows each redrawing below the other: one plain line, whole."""
    drawn = drawn_on(80, JPY_PARENT_PID="1")
    lines = drawn.replace("\r\n", "\n").splitlines()
    assert "\x1b" not in drawn and "\r" not in drawn.replace("\r\n", "")
    assert len([line for line in lines if line.startswith("round   1/500  reward 1.234")]) == 1
    assert not any("evaluating" in line or "━" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0421, "0.0421 s"), (4.2, "4.2 s"), (59.94, "59.9 s"), (59.97, "1 min"), (119.6, "2 min"),
        (200, "3 min 20 s"), (3599.6, "1 h"), (4320, "1 h 12 min"), (27 * 3600 + 59, "27 h 1 min"),
        (51 * 3600, "2 d 3 h"),
    ],
)  # fmt: skip
def test_a_duration_in_its_two_largest_units(seconds: float, words: str) -> None:
    """No unit is full: 119.6 s are two minutes, and not one and sixty seconds."""
    assert duration(seconds) == words


@pytest.mark.parametrize(("rounds", "left"), [(3, "5 min left"), (501, "20 h 50 min left")])
def test_what_is_left_of_a_short_run_is_said_in_minutes(
    rounds: int, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 s a round, of which one is done: 300 s are left of 3 rounds, 75000 s of 501."""
    clock = [0.0]
    progress = RunProgress(rounds=rounds, shown=False)
    monkeypatch.setattr(progress, "_pace", Pace(rounds, now=lambda: clock[0]))
    progress.begin_round(1, 100)
    clock[0] += 150.0
    progress.advance(100)
    progress._pace.finish()
    assert left in progress._estimate()
