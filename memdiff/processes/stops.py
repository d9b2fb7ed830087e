"""Requests to stop: which signals ask for one, and where a process acts on it. No torch.

`memdiff train` starts DeepSpeed's processes with these signals blocked, so that one that comes before a rank can answer
waits for it: none is lost, and none ends a process without a word.
"""

import os
import select
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from memdiff.errors import StopRequested

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED_ON = signal.SIGUSR1  # from `memdiff train` to its ranks: asks as the others do, and is never a second request
BLOCKED = (*ASKING, PASSED_ON)


class Stops:
    """The requests that this process got. `at_once` is called for a second SIGTERM or SIGINT.

    `rank` is who this process is where others stop beside it.
    """

    def __init__(self, at_once: Callable[[], None], *, rank: str | None = None) -> None:
        self.number: int | None = None  # the first request's signal
        self.together = False  # whether ranks leave what they do here at the same collective, or each alone
        self._at_once, self._leaves, self._holds = at_once, False, 0
        self._rank = rank

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.number is not None

    def listen(self) -> None:
        """From here on requests are noted, those that were blocked until now as well. Only in the main thread."""
        for number in BLOCKED:
            # nohup ignores hang-ups, and whoever wrote it meant that
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)

    def close(self) -> None:
        """From here on requests are ignored: what they ask for is done."""
        for number in BLOCKED:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def second_calls(self, action: Callable[[], None]) -> Iterator[None]:
        """While it lasts, a second request calls `action`."""
        before, self._at_once = self._at_once, action
        try:
            yield
        finally:
            self._at_once = before

    def ask(self, number: int) -> None:
        """Takes a request that came another way."""
        if self.number is None:
            self.number = number

    @contextmanager
    def leaving(self, *, together: bool = False) -> Iterator[None]:
        """While it lasts a request raises StopRequested, wherever it finds the process: what is done here is let go."""
        before = self._leaves, self.together
        self._leaves, self.together = True, together
        try:
            self.check()
            yield
        finally:
            self._leaves, self.together = before

    @contextmanager
    def staying(self) -> Iterator[None]:
        """A part of `leaving` that is not left halfway: a request raises at its end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        self.check()

    def stay(self) -> None:
        """From here to the end of `leaving` requests are only noted."""
        self._leaves = self.together = False

    def check(self) -> None:
        """Raises StopRequested where a request is to be acted on."""
        if self._leaves and not self._holds and self.requested:
            raise StopRequested if self._rank is None else StopRequested(asked(self._rank))

    def _note(self, number: int, frame: FrameType | None) -> None:
        second = self.requested and number in (signal.SIGTERM, signal.SIGINT)
        self.ask(number)
        if number == signal.SIGHUP:
            _let_go_of_terminals()
        if second:
            self._at_once()
        self.check()


def asked(rank: str) -> str:
    """What the rank of that number says that was asked before there was anything to save.

    launch.py asks too, after another rank's end: then the number tells that it is no request of a person's.
    """
    return f"rank {rank} was asked to stop; nothing had been trained by this command"


def exit_at_once() -> None:
    """The answer to a second request."""
    os.write(2, b"memdiff: stop[75]: stopped at once, on a second request\n")
    os._exit(75)


def _let_go_of_terminals() -> None:
    """Output goes nowhere from here on: writing to a terminal that is gone is an error, and the run is to be saved. So
    is writing to a pipe that nobody reads any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode) or _is_broken(descriptor):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _is_broken(descriptor: int) -> bool:
    """A pipe or a socket whose other end is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
