"""Errors that a person reads: one line (what, what was got, what to do) and an exit code.

Exit codes: 0 done, 2 recipe or arguments, 3 reward, 4 numeric, 5 checkpoint, 6 peer lost or hung, 7 out of memory at
micro-batch 1, 75 stopped on request (saved, or nothing had been trained). A bug of ours is an assertion or an ordinary
traceback instead.
"""

import re

EXIT_STOPPED = 75
LAST_LINE = re.compile(r"memdiff: (?:error|stop)\[(\d+)\]: (.*)")  # of a program: its exit code, and why


def last_line(exit_code: int, message: str) -> str:
    """What a program's last line on stderr is: `memdiff: error[2]: ...`; a stop that was asked for is no error."""
    return f"memdiff: {'stop' if exit_code == EXIT_STOPPED else 'error'}[{exit_code}]: {message}"


class MemdiffError(Exception):
    """Base of all errors that end a command with one line on stderr: `memdiff: error[<exit_code>]: <message>`."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class StopRequested(BaseException):
    """Somebody asked this process to stop. `agreed`: all ranks know, and leave at the same collective."""

    def __init__(
        self, message: str = "stopped on request; nothing had been trained by this command", *, agreed: bool = False
    ) -> None:
        super().__init__(message)
        self.agreed = agreed


class ConfigError(MemdiffError):
    """A recipe, an argument or an input file that can't be used."""

    exit_code = 2


class RewardError(MemdiffError):
    """A reward that raised, or returned something that is not one number an image."""

    exit_code = 3


class NumericError(MemdiffError):
    """A loss, gradient or weight that is not finite and could not be redone at a lower scale."""

    exit_code = 4


class CheckpointError(MemdiffError):
    """A checkpoint that is missing, incomplete or altered."""

    exit_code = 5


class PeerError(MemdiffError):
    """Another rank was lost or hangs."""

    exit_code = 6


LOST = "lost the connection to another rank"  # what the ranks that are left can say, which is not why


class OutOfMemoryError(MemdiffError):
    """One image at a time still does not fit."""

    exit_code = 7
