"""When a run has to have ended, so that its last checkpoint is whole before the machine is taken away. No torch."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

STARTED = "MEMDIFF_STARTED"  # seconds since 1970 at which `memdiff train` was called, for its ranks
SECONDS_TO_SAVE = 60.0  # before a checkpoint was timed
SECONDS_TO_END = 30.0  # the last words and the end of all processes


def note_start() -> None:
    """In the process that starts the ranks: loading and planning count as well."""
    os.environ[STARTED] = repr(time.time())


class Deadline:
    """Says after each round whether another one and its checkpoint would still fit into `hours`; None: always."""

    def __init__(self, hours: float | None) -> None:
        started = float(os.environ.get(STARTED, time.time()))
        self._end = None if hours is None else started + 3600 * hours
        self._round, self._save = 0.0, 0.0  # the longest of each, in seconds
        self._round_start = time.monotonic()

    def begin_round(self) -> None:
        """Takes the time at which a round starts."""
        self._round_start = time.monotonic()

    @contextmanager
    def a_save(self) -> Iterator[None]:
        """Takes the time of a checkpoint."""
        start = time.monotonic()
        yield
        self._save = max(self._save, time.monotonic() - start)

    def is_near(self) -> bool:
        """At a round's end, its evaluation included: whether another would end too late for its checkpoint."""
        self._round = max(self._round, time.monotonic() - self._round_start)
        if self._end is None:
            return False
        return time.time() + self._round + (self._save or SECONDS_TO_SAVE) + SECONDS_TO_END > self._end
