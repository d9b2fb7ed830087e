"""Text files, read whole: regular ones of sane size, of a run's own those in it; written through no link. No torch."""

import errno
import os
import stat
from pathlib import Path

from memdiff.errors import ConfigError

MOST_OWN_BYTES = 256 << 20  # the rows of a run of a million rounds
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


def own_bytes(path: Path, *, within: Path, most_bytes: int = MOST_OWN_BYTES) -> bytes:
    """The content of a file that memdiff wrote somewhere in the folder `within`.

    A folder may come from elsewhere: a pipe is not waited for, a link out of it not followed. Raises OSError where it
    is no such file.
    """
    try:
        real = path.resolve(strict=True)
    except RuntimeError:  # what pathlib makes of links in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    if not real.is_relative_to(home_of(within)):
        raise OSError(errno.EPERM, "it is a link out of its folder", str(path))
    if not real.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with os.fdopen(os.open(real, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def home_of(folder: Path) -> Path:
    """The folder itself, without links; of a snapshot in the hub's cache, whose files are links, its repository."""
    home = folder.resolve()
    is_snapshot = home.parent.name == "snapshots" and (home.parents[1] / "blobs").is_dir()
    return home.parents[1] if is_snapshot else home


def write_new(path: Path, text: str) -> None:
    """A file in the place of whatever had its name: a link is not written through, a pipe not waited for.

    Raises OSError, also where a folder has the name.
    """
    path.unlink(missing_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def open_to_append(path: Path) -> int:
    """A descriptor at the end of a file, old or new. Raises OSError for a link, and for a pipe without a reader."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def free_of_others(folder: Path) -> None:
    """Removes links, pipes, sockets and devices in a folder that is to be written into: files and folders stay.

    What a link leads to stays as it is.
    """
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            path.unlink()


def _other_kind(mode: int) -> str | None:
    """What is no regular file, in a word."""
    return next((name for test, name in OTHERS if test(mode)), None)
