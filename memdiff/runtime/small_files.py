"""Text files of a user's, read whole: regular ones of a sane size only. No torch."""

import os
import stat
from pathlib import Path

from memdiff.errors import ConfigError

OTHERS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def read_small_file(path: Path, *, what: str, most_bytes: int) -> bytes:
    """The content of a regular file. `what` it is to be, such as `the recipe`, begins the error's line.

    Pipes are never waited for, and of a file without an end no more than `most_bytes` is read. Raises ConfigError, and
    FileNotFoundError, of which the caller knows what to say.
    """
    try:
        kind = _other_kind(path.stat().st_mode)
        if kind is not None:
            raise ConfigError(f"{what} {path} can't be read: it is a {kind}; give a regular file")
        # without waiting, should another process have put a pipe there since
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{what} {path} can't be read: {error.strerror}") from None
    except ValueError:  # NUL in a name
        raise ConfigError(f"{what} {str(path)[:60]!r} can't be read: no file has such a name") from None
    if len(content) > most_bytes:
        raise ConfigError(f"{what} {path} is too large: at most {most_bytes} bytes are read")
    return content


def _other_kind(mode: int) -> str | None:
    """What is no regular file, in a word."""
    return next((name for test, name in OTHERS if test(mode)), None)
