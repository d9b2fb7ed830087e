"""How a rank's process ends: once its hooks have run, with its exit code, and nothing after them. No torch.

A thread of gloo's lets go of a collective's tensors some time after it. Where Python is being taken down by then, that
aborts the process (pytorch pull request 179291): now and then a rank whose work is done ended with SIGABRT. To destroy
the process group is no way out, since DeepSpeed's engine holds it by hooks in C++ to the very end.
"""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


class _Ending:
    code: int | None = None


def end_after_hooks() -> None:
    """From here on this process ends when its hooks have run. Hooks that were registered before do not run."""
    atexit.register(_after_hooks)


def note_exit_code(code: int) -> None:
    """What this process is about to end with: Python tells its hooks nothing."""
    _Ending.code = code


def _after_hooks() -> None:
    unhandled = hasattr(sys, "last_type")  # an error that nobody took, and whose traceback Python has shown
    leave(int(unhandled) if _Ending.code is None else _Ending.code)


def leave(code: int = 0) -> NoReturn:
    """Ends this process at once, all that was printed written."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # who reads may be gone
            stream.flush()
    os._exit(code)
