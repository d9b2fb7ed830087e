"""A logger in a thread of its own: the run never waits for a network, except a little at its end. No torch."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from memdiff.loggers.logger import LoggedRun, Logger
from memdiff.processes import landmarks

SECONDS_TO_CLOSE, SECONDS_TO_CLOSE_EARLY = 90.0, 10.0  # a run that was stopped or failed is to end soon


class InBackground:
    """Fulfils memdiff.loggers.logger.Logger: does in order, in its own thread, what it is asked for.

    What the logger raised there is raised by the next call here.
    """

    def __init__(self, make: Callable[[LoggedRun], Logger], run: LoggedRun, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[Logger], None] | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, args=(make, run), name=f"memdiff-{name}", daemon=True)
        self._thread.start()

    def scalars(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """Handed on to the thread."""
        self._hand_over(lambda logger: logger.scalars(round_number, numbers))

    def image(self, round_number: int, png: Path) -> None:
        """Handed on to the thread."""
        self._hand_over(lambda logger: logger.image(round_number, png))

    def close(self, exit_code: int) -> None:
        """Waits a while for what was asked for. Raises TimeoutError where that was not enough."""
        self._hand_over(lambda logger: logger.close(exit_code))
        self._calls.put(None)
        seconds = SECONDS_TO_CLOSE_EARLY if exit_code else SECONDS_TO_CLOSE
        end = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < end:
            self._thread.join(1.0)
            landmarks.passed()
        if self._thread.is_alive():
            raise TimeoutError(f"it was not done after {seconds:.0f} s")
        self._raise_failure()

    def _hand_over(self, call: Callable[[Logger], None]) -> None:
        self._raise_failure()
        self._calls.put(call)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _work(self, make: Callable[[LoggedRun], Logger], run: LoggedRun) -> None:
        try:
            logger = make(run)
            while (call := self._calls.get()) is not None:
                call(logger)
        except BaseException as error:  # SystemExit too: a library's, in a thread of its own
            self._failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
