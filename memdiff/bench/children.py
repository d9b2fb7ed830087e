"""Other programs that this one starts, waits for and ends; what they said where they failed. No torch."""

import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from memdiff.errors import LAST_LINE, MemdiffError
from memdiff.processes.bound import bound_command, bound_environment

SECONDS_TO_END = 20.0  # after a request, before it is killed


def run_module(module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> None:
    """`python -m module arguments`, all it says in `log`. Raises MemdiffError in its own last words where it fails.

    However this is left, the program has ended.
    """
    command = bound_command(module, *arguments)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**environment, **bound_environment()}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait()
        finally:
            _end(process)
    if code != 0:
        raise MemdiffError(last_words(log, code))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It is asked first; a second interruption does not wait for the answer."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SECONDS_TO_END)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def last_words(log: Path, code: int) -> str:
    """Why a program ended: its own line of an error, the end of its traceback, or the signal that killed it."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    for line in lines:
        match = LAST_LINE.match(line)
        if match:
            return match[2]
    if code < 0 and -code in set(signal.Signals):
        reason = "; the host's memory may have run out" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{reason}; see {log}"
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return f"{(errors or lines or ['it said nothing'])[-1][:300]} (exit code {code}; see {log})"
