"""Child processes of tests: none outlives its test, and none is waited for without a limit.

The limits end what hangs. They say nothing about speed, so that a machine ten times slower, or busy, passes too.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS_UNTIL_HUNG = 1800.0  # of a child that takes seconds, at most a few minutes; half of pytest's own limit
SECONDS_TO_STOP = 30.0  # from SIGTERM to SIGKILL: the command line stops the ranks that it started


@contextmanager
def ended(*processes: subprocess.Popen) -> Iterator[None]:
    """However this is left, the processes have ended and been waited for: asked first, then killed, with the children
    of those that lead a session of their own."""
    try:
        yield
    finally:
        alive = [process for process in processes if process.poll() is None]
        for process in alive:
            process.terminate()
        for process in alive:
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_STOP)
            process.kill()
            process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(
    command: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    seconds: float = SECONDS_UNTIL_HUNG,
) -> subprocess.CompletedProcess[str]:
    """The command's outcome with all that it said, `env` over this process's environment.

    Raises subprocess.TimeoutExpired after `seconds`, when it has ended.
    """
    environment = os.environ | (env or {})
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    with process, ended(process):
        output, errors = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_python(*words: str, cwd: Path = ROOT, seconds: float = SECONDS_UNTIL_HUNG) -> subprocess.CompletedProcess[str]:
    """This Python in `cwd`, with this checkout's package."""
    return run([sys.executable, *words], cwd=cwd, env={"PYTHONPATH": str(ROOT)}, seconds=seconds)


def memdiff(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line, as a user has it."""
    command = [sys.executable, "-m", "memdiff", *map(str, words)]
    return run(command, cwd=cwd, env={"PYTHONPATH": str(ROOT), "COLUMNS": "120"})
