"""All loggers of a run. One that fails is said once and then off: no logger ends a run. No torch."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from memdiff.loggers.background import InBackground
from memdiff.loggers.logger import LoggedRun, Logger, numbers_of
from memdiff.recipe.recipe import LoggerName
from memdiff.runtime.small_files import own_bytes, write_new

KEY_FILE = "loggers.json"


class Loggers:
    """Those that still work. Only the first rank has any."""

    def __init__(self, names: Sequence[LoggerName], run: LoggedRun, say: Callable[[str], None]) -> None:
        self._say = say
        self._loggers: dict[str, Logger] = {}
        for name in names:
            with suppress(_OffError):
                self._loggers[name] = self._tried(name, lambda name=name: make_logger(name, run))

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        numbers = numbers_of(row)
        self._each(lambda logger: logger.scalars(row["round"], numbers))

    def image(self, round_number: int, png: Path) -> None:
        """The grid of an evaluation, where it could be written."""
        if png.is_file():
            self._each(lambda logger: logger.image(round_number, png))

    def close(self, exit_code: int) -> None:
        """The run has ended."""
        self._each(lambda logger: logger.close(exit_code))
        self._loggers.clear()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                self._tried(name, partial(call, logger))
            except _OffError:
                del self._loggers[name]

    def _tried(self, name: str, call: Callable[[], Any]) -> Any:
        """What the call returns. Whatever it raises becomes a line, and _OffError."""
        try:
            return call()
        except Exception as error:
            self._say(f"warning: {name} is off for the rest of this run: {_cause(name, error)}")
            raise _OffError from None


class _OffError(Exception):
    """A logger that is said to be off."""


def make_logger(name: LoggerName, run: LoggedRun) -> Logger:
    """Raises whatever its library does."""
    match name:
        case "tensorboard":
            from memdiff.loggers.tensorboard import TensorBoard

            return TensorBoard(run)
        case "wandb":
            from memdiff.loggers.wandb_run import WeightsAndBiases

            return InBackground(WeightsAndBiases, run, name)
        case "trackio":
            from memdiff.loggers.trackio_run import Trackio

            return InBackground(Trackio, run, name)
        case _:
            assert_never(name)


def key_of(folder: Path, *, begins: bool) -> str:
    """The run's own name at its loggers, kept in its folder: a run that goes on has the same, one that begins a new."""
    file = folder / KEY_FILE
    if not begins:
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            key = json.loads(own_bytes(file, within=folder))["key"]
            if isinstance(key, str) and key.isalnum():
                return key
    key = uuid.uuid4().hex[:10]
    with suppress(OSError):
        write_new(file, json.dumps({"key": key}) + "\n")
    return key


def _cause(name: str, error: Exception) -> str:
    """In a line, with what to do where that is known."""
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return f"the package {name} is not installed; pip install {name}"
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())
    return f"{type(error).__name__}: {line[:200]}"
