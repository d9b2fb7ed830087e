"""DeepSpeed's launcher and its ranks as `memdiff train` sees them: who asks to stop, which rank ended first. No torch.

The launcher itself ends the ranks one after another, up to half a minute each, when one is gone. That is not waited
for.
"""

import signal
import subprocess
import time

from memdiff.processes.ancestors import LAUNCH, RUNNER
from memdiff.processes.identity import (
    identity,
    kill,
    killed_by,
    lives,
    of_session,
    parent_of,
    pending,
    pid_of,
    rank_of,
    words_of,
)  # fmt: skip
from memdiff.processes.stops import BLOCKED, PASSED_ON, Stops

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_SEARCHES = 0.5  # for processes that are new
SECONDS_FOR_THE_OTHERS = 6.0  # after the first rank has ended: they have nothing left to do, or nobody to do it with
SECONDS_FOR_RANKS = 3.0  # after the launcher has ended: their watchers need less


class Launched:
    """`process` leads a session of its own, in which requests to stop wait (see `bound`)."""

    def __init__(self, process: "subprocess.Popen[bytes]", stops: Stops) -> None:
        self.process, self.stops = process, stops
        self.ranks: dict[str, str] = {}  # `rank N` by identity
        self.first_gone: str | None = None  # `rank N (pid P)`
        self._killed_by = 0  # the signal that ended it, where one did and was seen
        self.how: str | None = None  # it ended, where that is not the end of a rank
        self._launchers: list[int] = []
        self._asked: set[str] = set()
        self._searched = self._first_gone_at = 0.0
        self.is_urgent = False  # whether a second request to stop came
        self.cleared = False  # whether what a rank's end had left was killed, the launcher included

    def end_at_once(self) -> None:
        """A second request to stop: everything is killed."""
        self.is_urgent = True

    def wait(self) -> int:
        """Until everything has ended. Returns the first process's exit code, which is negative for a signal.

        Where the rank that ended first was killed, it is launch.py's code for that: launch.py itself looks once a
        second, and may take the end of a rank that lost another one for the first.
        """
        while self.process.poll() is None:
            self._look()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._note_ends()
        deadline = time.monotonic() + (0 if self.is_urgent else SECONDS_FOR_RANKS)
        while left := of_session(self.process.pid):
            if time.monotonic() > deadline:
                kill(left)
            time.sleep(0.05)
        return 256 - self._killed_by if self._killed_by else self.process.returncode

    def _look(self) -> None:
        now = time.monotonic()
        if self.stops.requested or now - self._searched > SECONDS_BETWEEN_SEARCHES:
            self._search()
            self._searched = now
        self._note_ends()
        for pid in self._launchers:
            number = pending(pid, BLOCKED)
            if number is not None:
                self.stops.ask(number)
        over = self.first_gone is not None and now - self._first_gone_at > SECONDS_FOR_THE_OTHERS
        self.cleared = self.cleared or over
        if self.is_urgent or over or (self.stops.requested and not self.ranks):
            kill(of_session(self.process.pid))
        elif self.stops.requested:
            self._ask_ranks()

    def _search(self) -> None:
        self._launchers = []
        for pid in of_session(self.process.pid):
            rank, process, parent = rank_of(pid), identity(pid), parent_of(pid)
            if rank is not None and process is not None:
                # A rank's child has its command line until it runs another, as a compiler's: its end is none of a rank.
                if parent is None or rank_of(parent) is None:
                    self.ranks.setdefault(process, f"rank {rank}")
            elif {LAUNCH, RUNNER} & set(words_of(pid)):
                self._launchers.append(pid)

    def _ask_ranks(self) -> None:
        """Each once, those that start later too."""
        number = signal.SIGHUP if self.stops.number == signal.SIGHUP else PASSED_ON
        for process in self.ranks.keys() - self._asked:
            kill([pid_of(process)], number)
            self._asked.add(process)

    def _note_ends(self) -> None:
        if self.first_gone is None:
            ended = [process for process in self.ranks if not lives(process)]
            if ended:
                killed = {} if self.is_urgent else {process: n for process in ended if (n := killed_by(process))}
                first = next(iter(killed), ended[0])  # others of the same look ended because of it
                self.first_gone, self._killed_by = f"{self.ranks[first]} (pid {pid_of(first)})", killed.get(first, 0)
                self._first_gone_at = time.monotonic()
