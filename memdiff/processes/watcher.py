"""`python -m memdiff.processes.watcher [OPTIONS] RANK ANCESTOR ...`, each NAME=PID:START: ends a rank that can't go on.

That is: one of its ancestors is gone, or it shows no sign of life for too long. `--page=N` is the descriptor of the
rank's heartbeat, `--requests=N` of a pipe into which the kernel's signals to it are written. `--connection=PID:START`
is a process at whose end the rank is asked to stop, as at that of a terminal. The watcher ends by itself when the rank
is gone. No torch.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass

from memdiff.errors import PeerError, last_line
from memdiff.processes.ancestors import LAUNCHERS, farewell, first_gone, parsed
from memdiff.processes.heartbeat import Beat, Heartbeat
from memdiff.processes.identity import children, descendants, is_stopped, kill, lives, parent_of, pid_of, rank_of
from memdiff.processes.shared_memory import remove_buffer
from memdiff.processes.stops import BLOCKED

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_FOR_THE_OTHERS = 5.0  # a rank that waits for others lets the others' watchers speak first
SECONDS_FOR_STACKS = 1.0
SHOW_STACKS = signal.SIGUSR2


@dataclass
class Watchdog:
    """What a rank shows of itself, and since when a stop is asked for."""

    heartbeat: Heartbeat
    requests: int
    asked: float | None = None

    def problem(self, rank: int, now: float) -> str | None:
        """What is wrong with a rank that has shown no sign of life for too long."""
        if self.asked is None and self._was_asked():
            self.asked = now
        beat = self.heartbeat.last()
        limit, since = self._limit(beat)
        if not limit or now - since < limit:
            return None
        stopped = is_stopped(rank)
        if not stopped and beat.waits and now - since < limit + SECONDS_FOR_THE_OTHERS:
            return None
        why = "after it was asked to stop" if limit != beat.limit else "(run.watchdog_seconds)"
        state = "; it is held by SIGSTOP or a debugger" if stopped else ""
        return f"made no progress for {limit:g} s {why}, at: {beat.place}{state}"

    def _limit(self, beat: Beat) -> tuple[float, float]:
        """Seconds, and from when."""
        if self.asked is None:
            return beat.limit, beat.time
        return beat.limit_once_asked, max(beat.time, self.asked)

    def _was_asked(self) -> bool:
        try:
            return any(number in BLOCKED for number in os.read(self.requests, 512))
        except BlockingIOError:
            return False


def watch(
    label: str, rank: str, ancestors: dict[str, str], watchdog: Watchdog | None = None, connection: str | None = None
) -> None:
    """Waits for the end of the rank, of an ancestor or of patience; then the rank, all it started, and its launcher are
    killed, the latter not where the rank had been asked to stop."""
    while lives(rank):
        if first_gone(ancestors) is not None:
            # Asked again: another rank's watcher may have ended a launcher since the outermost one was looked at.
            gone = first_gone(ancestors)
            assert gone is not None, "a process that is gone stays gone"
            _end(farewell(gone, label), rank, ancestors)
            return
        if connection is not None and not lives(connection):
            kill([pid_of(rank)], signal.SIGHUP)
            connection = None
        problem = watchdog.problem(pid_of(rank), time.monotonic()) if watchdog else None
        if problem is not None and watchdog is not None:
            _say(f"{label} {problem}; the ranks' stacks follow, and the same command goes on from the last checkpoint")
            kill(_ranks_beside(pid_of(rank)), SHOW_STACKS)
            time.sleep(SECONDS_FOR_STACKS)
            # A launcher that asks, since another rank has ended, knows with which exit code, and waits for this one.
            _kill(rank, ancestors if watchdog.asked is None else {})
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _end(message: str, rank: str, ancestors: dict[str, str]) -> None:
    _say(message)
    _kill(rank, ancestors)


def _kill(rank: str, ancestors: dict[str, str]) -> None:
    kill([pid_of(rank)], signal.SIGSTOP)  # so that it starts no more
    below = [pid for pid in descendants(pid_of(rank)) if pid != os.getpid()]
    launcher = [ancestors[name] for name in LAUNCHERS if name in ancestors]
    kill([pid_of(rank), *below, *(pid_of(process) for process in launcher if lives(process))])


def _ranks_beside(rank: int) -> list[int]:
    """This rank and the others that the same launcher started."""
    launcher = parent_of(rank)
    return [] if launcher is None else [pid for pid in children(launcher) if rank_of(pid) is not None]


def _say(message: str) -> None:
    sys.stderr.write(f"{last_line(PeerError.exit_code, message)}\n")
    sys.stderr.flush()


def _watchdog(options: dict[str, str]) -> Watchdog | None:
    if "--page" not in options:
        return None
    requests = int(options["--requests"])
    os.set_blocking(requests, False)
    return Watchdog(Heartbeat(int(options["--page"])), requests)


if __name__ == "__main__":
    # launch.py ends a rank by SIGTERM to all that it started; the rank may save first, and is watched until it is gone.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    words = sys.argv[1:]
    options = dict(parsed(word) for word in words if word.startswith("--"))
    processes = [parsed(word) for word in words if not word.startswith("--")]
    watch(*processes[0], dict(processes[1:]), _watchdog(options), options.get("--connection"))
    remove_buffer()  # which a rank that is killed as it meets the others leaves behind
