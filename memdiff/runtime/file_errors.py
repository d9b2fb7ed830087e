"""Whether an OSError is a line about a file that a person named, or a mistake of ours. No torch."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memdiff.errors import CheckpointError

# What a program's own mistake leads to as well: then the traceback is wanted. A disk that is full, read-only or broken,
# a right that is missing or a name that is too long are never its mistake.
DOUBTFUL = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EBADF, errno.EINVAL, errno.ESPIPE}
OWN = Path(__file__).resolve().parents[1]  # the package's files


def line_about(error: OSError, named: Iterable[object]) -> str | None:
    """`FILE can't be used: WHY`; None where it is to stay a traceback.

    `named` are the files and folders that a person chose, as words of a command line are: `--json=FILE` too. A file
    that should be there, and is none of these, below or above them, is one that memdiff looked for in vain.
    """
    file = "" if error.filename is None else os.fsdecode(error.filename) if _is_name(error.filename) else "a file"
    if error.errno in DOUBTFUL and not _is_among(file, named):
        return None
    return f"{file or 'a file'} can't be used: {error.strerror or error}"


@contextmanager
def disk_told(*named: object) -> Iterator[None]:
    """CheckpointError with that line, where a run's disk or one of the files that a person `named` raises OSError."""
    try:
        yield
    except OSError as error:
        message = line_about(error, named)
        if message is None:
            raise
        raise CheckpointError(message) from None


def circle_of(error: RuntimeError) -> OSError | None:
    """Of links in a circle, which pathlib makes another error of (until Python 3.13): the disk's own. Else None."""
    cause = error.__context__
    return cause if isinstance(cause, OSError) and cause.errno == errno.ELOOP else None


def _is_name(filename: object) -> bool:
    """An OSError may have a descriptor in its place."""
    return isinstance(filename, str | bytes)


def _is_among(file: str, named: Iterable[object]) -> bool:
    if not file:
        return False
    path = Path(os.path.abspath(file))  # noqa: PTH100  without following links: a NUL in a name is no error then
    if path.is_relative_to(OWN):
        return False
    for word in map(str, named):
        for text in (word, word.partition("=")[2]):
            place = Path(os.path.abspath(text))  # noqa: PTH100
            if text and (path.is_relative_to(place) or place.is_relative_to(path)):
                return True
    return False
