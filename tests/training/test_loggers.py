"""A run's numbers, images and recipe reach its loggers; a logger that fails is said once and ends nothing."""

import io
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memdiff.errors import ConfigError
from memdiff.loggers import background
from memdiff.loggers.background import InBackground
from memdiff.loggers.event_file import crc32c
from memdiff.loggers.logger import LoggedRun
from memdiff.loggers.loggers import Loggers, key_of
from memdiff.loggers.tensorboard import FOLDER
from memdiff.recipe.reading import read_recipe, recipe_hash
from tests.helpers.logger_packages import trackio_package, wandb_package
from tests.helpers.tensorboard_reader import read_events

RECIPE_TEXT = "run:\n  rounds: 6\n"


def logged(folder: Path, *, last_round: int = -1) -> LoggedRun:
    return LoggedRun(folder, {"run": {"rounds": 6}}, RECIPE_TEXT, last_round, key_of(folder, begins=last_round < 0))


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"round": number, "reward_mean": 0.1 * number, "skipped": 0, "evaluate/best": number == 2, **more}


@pytest.fixture
def png(tmp_path: Path) -> Path:
    Image.new("RGB", (1500, 30), (200, 10, 10)).save(tmp_path / "grid.png")
    return tmp_path / "grid.png"


def test_checksums_are_those_of_the_standard() -> None:
    """RFC 3720, appendix B.4: 32 bytes of zeros, of ones, ascending."""
    contents = (bytes(32), b"\xff" * 32, bytes(range(32)))
    assert [crc32c(content) for content in contents] == [0x8A9136AA, 0x62A8AB43, 0x46DD794E]


def test_tensorboard_reads_what_was_logged_and_a_resumed_run_goes_on(tmp_path: Path, png: Path) -> None:
    """Rounds 0 to 3, killed, and again from 2 on with other numbers: its own reader shows one curve, the newer one."""
    said: list[str] = []
    first = Loggers(("tensorboard",), logged(tmp_path), said.append)
    for number in range(4):
        first.row(row(number, reward_std=None, alarms=["text"], norms=[1.0], huge=1e300))
    first.image(2, png)
    first.close(1)
    second = Loggers(("tensorboard",), logged(tmp_path, last_round=1), said.append)
    for number in range(2, 6):
        second.row(row(number) | {"reward_mean": 5.0 + number})
    second.image(4, png)
    second.close(0)
    events = read_events(tmp_path / FOLDER)
    curve = {0: 0.0, 1: 0.1, 2: 7.0, 3: 8.0, 4: 9.0, 5: 10.0}
    assert events.scalars["reward_mean"] == {step: float(np.float32(value)) for step, value in curve.items()}
    assert events.scalars["evaluate/best"] == {step: float(step == 2) for step in range(6)}
    assert events.scalars["huge"] == {0: np.inf, 1: np.inf}
    assert events.scalars.keys() == {"reward_mean", "skipped", "evaluate/best", "huge"}
    (step, width, height, encoded), *more = events.images["samples"]
    assert (step, width, height, more) == (4, 1024, 20, [])  # what was logged at round 2 does not count any more
    assert Image.open(io.BytesIO(encoded)).size == (1024, 20)
    assert RECIPE_TEXT in events.texts["recipe"] and said == []


def test_one_that_fails_is_said_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: Path
) -> None:
    """A package that is missing, one that raises at its start, and a disk that is full, each in a line."""
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "wandb", wandb_package([], failure=RuntimeError("no\nnetwork \x1b[31m")))
    said: list[str] = []
    loggers = Loggers(("tensorboard", "wandb", "trackio"), logged(tmp_path), said.append)
    for thread in threading.enumerate():
        if thread.name.startswith("memdiff-"):
            thread.join()
    loggers.row(row(0))
    loggers.image(0, png)
    assert sorted(said) == [
        "warning: trackio is off for the rest of this run: the package trackio is not installed; pip install trackio",
        "warning: wandb is off for the rest of this run: RuntimeError: no network [31m",
    ]
    (tmp_path / "broken").write_text("a file in the folder's place")
    full = LoggedRun(tmp_path / "broken", {}, "", -1, "key")
    Loggers(("tensorboard",), full, said.append).row(row(1))
    assert said[2].startswith("warning: tensorboard is off for the rest of this run: ") and len(said) == 3
    loggers.row(row(1))
    loggers.close(0)
    assert read_events(tmp_path / FOLDER).scalars["skipped"] == {0: 0.0, 1: 0.0} and len(said) == 3


def test_weights_and_biases_is_called_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: Path) -> None:
    """One run there, whenever it goes on; what the server has is not sent again."""
    calls: list[tuple[str, Any]] = []
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb_package(calls))
    loggers = Loggers(("wandb",), logged(tmp_path), pytest.fail)
    loggers.image(0, png)
    loggers.row(row(0, reward_std=None))
    loggers.close(0)
    key = key_of(tmp_path, begins=False)
    begun = {"project": "memdiff", "id": key, "name": tmp_path.name, "config": {"run": {"rounds": 6}}}
    numbers = {"reward_mean": 0.0, "skipped": 0.0, "evaluate/best": 0.0}
    assert calls == [
        ("init", begun | {"resume": "allow"}),
        ("log", (0, {"samples": f"image of {png}"})),
        ("log", (0, numbers)),
        ("finish", 0),
    ]
    calls.clear()
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setitem(sys.modules, "wandb", wandb_package(calls, starting_step=3))
    again = Loggers(("wandb",), logged(tmp_path, last_round=1), pytest.fail)
    for number in (2, 3):
        again.row(row(number))
    again.close(75)
    assert calls[0] == ("init", begun | {"resume": "allow", "project": "mine"})
    assert [call[1][0] for call in calls if call[0] == "log"] == [3] and calls[-1] == ("finish", 75)


def test_trackio_is_called_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: Path) -> None:
    calls: list[tuple[str, Any]] = []
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    monkeypatch.setitem(sys.modules, "trackio", trackio_package(calls))
    loggers = Loggers(("trackio",), logged(tmp_path), pytest.fail)
    loggers.image(2, png)
    loggers.row(row(2))
    loggers.close(0)
    name = f"{tmp_path.name}-{key_of(tmp_path, begins=False)}"
    assert calls[0] == (
        "init",
        {"project": "memdiff", "name": name, "config": {"run": {"rounds": 6}}, "resume": "allow"},
    )
    assert calls[1:] == [
        ("log", (2, {"samples": f"image of {png}"})),
        ("log", (2, {"reward_mean": 0.2, "skipped": 0.0, "evaluate/best": 1.0})),
        ("finish", None),
    ]


def test_a_logger_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are handed on, and the end waits for so long and no longer."""
    monkeypatch.setattr(background, "SECONDS_TO_CLOSE", 0.1)
    hangs, rows = threading.Event(), []

    class Slow:
        def scalars(self, round_number: int, numbers: Any) -> None:
            hangs.wait()
            rows.append(round_number)

    made: Any = lambda _: Slow()  # noqa: E731
    logger = InBackground(made, logged(tmp_path), "slow")
    logger.scalars(0, {})
    logger.scalars(1, {})
    with pytest.raises(TimeoutError, match="it was not done after 0 s"):
        logger.close(0)
    assert rows == []
    hangs.set()
    logger._thread.join()
    assert rows == [0, 1]


def test_loggers_change_no_weight_and_are_named_in_the_recipe() -> None:
    """A run may go on with others; what is none is told with those there are."""
    every = read_recipe(Path("digits_ddpo"), ("run.log=[tensorboard,wandb,trackio]",))
    none = read_recipe(Path("digits_ddpo"), ("run.log=[]",))
    assert every.run.log == ("tensorboard", "wandb", "trackio") and recipe_hash(every) == recipe_hash(none)
    with pytest.raises(ConfigError, match=r"run\.log\.0: input should be 'tensorboard', 'wandb' or 'trackio'"):
        read_recipe(Path("digits_ddpo"), ("run.log=[wandbb]",))
