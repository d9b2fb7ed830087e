"""Kills a rank whose launcher, or whatever started that, is gone. No torch.

    python -m memdiff.processes.watcher RANK ANCESTOR ...       each NAME=PID:START

It ends by itself when the rank is gone.
"""

import os
import signal
import sys
import time

from memdiff.processes.ancestors import LAUNCHERS, farewell, first_gone, parsed
from memdiff.processes.identity import descendants, kill, lives, pid_of

SECONDS_BETWEEN_LOOKS = 0.25


def watch(label: str, rank: str, ancestors: dict[str, str]) -> None:
    """Waits for the end of the rank, or of an ancestor; then the rank, all it started, and its launcher are killed."""
    while lives(rank):
        if first_gone(ancestors) is not None:
            # Asked again: another rank's watcher may have ended a launcher since the outermost one was looked at.
            gone = first_gone(ancestors)
            assert gone is not None, "a process that is gone stays gone"
            sys.stderr.write(f"memdiff: error[6]: {farewell(gone, label)}\n")
            sys.stderr.flush()
            kill([pid_of(rank)], signal.SIGSTOP)  # so that it starts no more
            below = [pid for pid in descendants(pid_of(rank)) if pid != os.getpid()]
            launcher = [ancestors[name] for name in LAUNCHERS if name in ancestors]
            kill([pid_of(rank), *below, *(pid_of(process) for process in launcher if lives(process))])
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    # launch.py ends a rank by SIGTERM to all that it started; the rank may save first, and is watched until it is gone.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    label, rank = parsed(sys.argv[1])
    watch(label, rank, dict(parsed(entry) for entry in sys.argv[2:]))
