"""What a person is told while something takes its time: a line once it takes two seconds."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from memdiff.runtime.from_here import from_here

SECONDS_IN_SILENCE = 2.0


@contextmanager
def said_if_slow(
    words: str | Callable[[], str | None],
    say: Callable[[str], None] | None = None,
    *,
    after: float = SECONDS_IN_SILENCE,
) -> Iterator[None]:
    """`words` by `say` (None: a line on stdout) `after` so many seconds; a function may return None: nothing."""

    def tell() -> None:
        text = words if isinstance(words, str) else words()
        if text is not None:
            (say or on_stdout)(text)

    timer = threading.Timer(after, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def on_stdout(text: str) -> None:
    """A line for who follows a run. Nothing where whoever read is gone."""
    with suppress(OSError):
        sys.stdout.write(f"{from_here(text)}\n")
        sys.stdout.flush()


def on_stderr(text: str) -> None:
    """A line beside what a command prints for programs, where somebody looks: who reads a file wants errors alone."""
    with suppress(OSError):
        if not sys.stderr.isatty():
            return
        sys.stderr.write(f"memdiff: {from_here(text)}\n")
        sys.stderr.flush()
