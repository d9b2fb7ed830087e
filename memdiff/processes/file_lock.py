"""A file that one process, or one run's processes, hold while they live. No torch.

It is flock(2): the kernel lets go when the holder dies, however it dies, so that no lock is ever left behind.
"""

import errno
import fcntl
import json
import os
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from memdiff.processes.identity import own_identity, pid_of

MOST_BYTES = 4096  # of a holder
HOLDER = "MEMDIFF_HOLDER"  # who holds the run's folder, for ranks on other hosts than its own: a Holder as JSON
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # file systems without flock


@dataclass(frozen=True)
class Holder:
    """Who wrote itself into a lock file. `process` is empty where nobody has."""

    process: str = ""
    host: str = ""

    @classmethod
    def here(cls, process: str) -> Self:
        """A process of this host, by its identity."""
        return cls(process, socket.gethostname())

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """From what a lock file holds; empty where that is none."""
        try:
            content = json.loads(text)
            return cls(str(content["process"]), str(content["host"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls()

    def __str__(self) -> str:
        return f"process {pid_of(self.process)} on {self.host}" if self.process else "another process"


def holders_of_environment() -> tuple[Holder, ...]:
    """The `memdiff train` that started this process from another host, which holds the run's folder."""
    return (Holder.parse(os.environ[HOLDER]),) if HOLDER in os.environ else ()


class FileLock:
    """A lock on `file`, which is made where it is missing and removed when its last holder lets go."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._descriptor: int | None = None

    def acquire(self, *, friends: tuple[Holder, ...] = (), wait: bool = False) -> Holder | None:
        """Takes the lock: None. Where somebody else has it: who, unless it is one of `friends`, who share it.

        The lock is held shared, and taken only where nobody holds it or a friend
        does. With `wait`, it is held alone, and others are waited for. A file system without flock gives every lock,
        with a warning. Raises OSError where the file can't be made.
        """
        if self._lock(fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._write_holder()
            # Linux converts by letting go first: whoever gets in between has the lock, and this process has not.
            if wait or self._convert(fcntl.LOCK_SH):
                return None
            self._close()
            return self.holder()
        holder = self.holder()
        if holder in friends:
            if self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB):
                return None
            holder = self.holder()
        return holder

    def holder(self) -> Holder:
        """Who holds it, or held it last."""
        try:
            return Holder.parse(self._text())
        except (OSError, ValueError):
            return Holder()

    def _text(self) -> bytes:
        """Of a file that may be a link or a pipe, where the folder is another's."""
        descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(descriptor, MOST_BYTES)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Lets go; the last holder removes the file."""
        if self._descriptor is None:
            return
        if self._convert(fcntl.LOCK_EX) and self._is_the_file():
            self.file.unlink()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _lock(self, how: int) -> bool:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(self.file, flags, 0o644)
            try:
                fcntl.flock(self._descriptor, how)
            except BlockingIOError:
                self._close()
                return False
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    self._close()
                    raise
                sys.stderr.write(
                    f"memdiff: warning: {self.file.parent} is on a file system without locks ({error.strerror}): "
                    "nothing keeps a second process out of it\n"
                )
                return True
            if self._is_the_file():
                return True
            self._close()  # its last holder removed it in between

    def _convert(self, how: int) -> bool:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        return True

    def _is_the_file(self) -> bool:
        assert self._descriptor is not None
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.file.lstat())
        except FileNotFoundError:
            return False

    def _write_holder(self) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(Holder.here(own_identity()))).encode(), 0)
        os.fsync(self._descriptor)  # other hosts read it

    def _close(self) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None
