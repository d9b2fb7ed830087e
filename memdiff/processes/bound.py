"""Runs a module in a process that the kernel kills with its parent. No torch.

    python -m memdiff.processes.bound MODULE ARGUMENTS

A program of its own, since code between fork and exec (`preexec_fn`) is not safe beside other threads.
"""

import ctypes
import os
import runpy
import signal
import sys

from memdiff.processes.ancestors import VARIABLE, ancestors_of_environment, named
from memdiff.processes.identity import own_identity, pid_of
from memdiff.processes.stops import BLOCKED

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
BLOCKING = "--requests-wait"


def bound_command(module: str, *arguments: str, requests_wait: bool = False) -> list[str]:
    """The command line that runs `python -m module arguments`; it needs `bound_environment`.

    With `requests_wait`, requests to stop wait in it, and in all it starts, until a process listens (see `stops`).
    """
    return [sys.executable, "-m", "memdiff.processes.bound", *[BLOCKING] * requests_wait, module, *arguments]


def bound_environment() -> dict[str, str]:
    """Names this process to the one it starts, and to those that follow from it."""
    return {VARIABLE: named("memdiff", own_identity())}


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends; exits where that is past already."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(6)


if __name__ == "__main__":
    end_with_parent(pid_of(ancestors_of_environment()["memdiff"]))
    sys.argv = sys.argv[1:]
    if sys.argv[0] == BLOCKING:
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
