"""The outermost frame of every program: errors become one line on stderr and an exit code. No torch."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer

from memdiff.errors import EXIT_STOPPED, CheckpointError, MemdiffError, StopRequested
from memdiff.processes.ending import note_exit_code
from memdiff.runtime.file_errors import circle_of, line_about
from memdiff.runtime.from_here import from_here
from memdiff.runtime.quiet_imports import quiet_imports

LONGEST_WORD = 500  # a long path is one word


def guarded(action: Callable[[], Any], words: Sequence[str] = ()) -> NoReturn:
    """Exits with what `action` returns (None: 0); every error of ours is one line on stderr and its exit code.

    So is what the disk does, and a file that `words`, the command line's, name; another file's absence is a bug.
    """
    quiet_imports()
    if logging.lastResort is not None:  # what prints warnings where no handler is set up
        logging.lastResort.setFormatter(HarmlessFormatter())
    try:
        code = action()
    except MemdiffError as error:
        code = _say(error.exit_code, str(error))
    except typer.TyperException as error:
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        # Bare `memdiff` prints its help and raises without a message.
        code = _say(2, f"{message} See memdiff --help.") if message else 2
    except StopRequested as request:
        code = _say(EXIT_STOPPED, str(request))
    except (OSError, RuntimeError) as error:
        at_fault = circle_of(error) if isinstance(error, RuntimeError) else error
        message = line_about(at_fault, words) if at_fault is not None and at_fault.errno is not None else None
        if message is None:
            raise
        code = _say(CheckpointError.exit_code, message)
    except (KeyboardInterrupt, typer.Abort):
        code = _say(EXIT_STOPPED, "stopped")
    sys.stdout.flush()
    note_exit_code(code or 0)
    sys.exit(code or 0)


def harmless(text: str) -> str:
    """On one line, control characters written out: what a file, a model or a reward says can't steer the terminal.

    Nor fill it: words of thousands of characters, which files hold and no message has of its own, are cut.
    """
    words = (f"{word[:LONGEST_WORD]}..." if len(word) > LONGEST_WORD else word for word in text.split())
    return written_out(" ".join(words))


def written_out(text: str) -> str:
    """Control characters but ends of lines as Python writes them."""
    shown = (sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text)
    return "".join(shown)


class HarmlessFormatter(logging.Formatter):
    """Log records as `harmless` lines; they quote files and prompts."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, on one line."""
        return harmless(super().format(record))


def _say(exit_code: int, message: str) -> int:
    print(f"memdiff: error[{exit_code}]: {harmless(from_here(message))}", file=sys.stderr, flush=True)  # noqa: T201
    return exit_code
