"""Locks that end with their holders, and what they keep apart: runs in a folder, builds, samples."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memdiff.processes.file_lock import FileLock, Holder
from memdiff.processes.identity import own_identity

ROOT = Path(__file__).resolve().parents[2]
HOLDS = """
import sys, time
from pathlib import Path
from memdiff.processes.file_lock import FileLock, Holder
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire(wait="wait" in sys.argv) is None
print("held", flush=True)
time.sleep(300)
"""


def holding(file: Path, *words: str) -> subprocess.Popen[str]:
    """A process that has the lock."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDS, str(file), *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("words", [(), ("wait",)], ids=["shared", "alone"])
def test_a_lock_names_its_holder_and_ends_with_it(words: tuple[str, ...], tmp_path: Path) -> None:
    """Refused while another process lives, by pid and host; taken as soon as that was killed by kill -9."""
    file = tmp_path / "lock"
    with holding(file, *words) as other:
        try:
            assert str(FileLock(file).acquire()) == f"process {other.pid} on {socket.gethostname()}"
        finally:
            other.kill()
    with FileLock(file) as lock:
        assert lock.acquire() is None and lock.holder().process == own_identity()
    assert not file.exists()


def test_waiting_ends_with_the_holder(tmp_path: Path) -> None:
    """A second that waits gets the lock when the first is killed, whether or not the file is still the same."""
    file = tmp_path / "lock"
    with holding(file, "wait") as other:
        threading.Timer(0.3, other.kill).start()
        with FileLock(file) as lock:
            assert lock.acquire(wait=True) is None
            assert other.wait(timeout=30) != 0


def test_a_friend_shares_the_lock_and_keeps_it(tmp_path: Path) -> None:
    """A rank beside the `memdiff train` that started it: when that is killed, the lock is still the rank's."""
    file = tmp_path / "lock"
    rank, stranger = FileLock(file), FileLock(file)
    with holding(file) as other:
        try:
            friend = stranger.holder()
            assert friend.process.startswith(f"{other.pid}:")
            assert (
                rank.acquire(friends=(Holder.here(f"{os.getpid()}:1"), Holder(friend.process, "another-host")))
                is not None
            )
            assert rank.acquire(friends=(friend,)) is None
        finally:
            other.kill()
    assert stranger.acquire() is not None
    rank.release()
    assert stranger.acquire() is None
    stranger.release()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    """Sixteen at the same moment, twenty times: always exactly one."""
    for _ in range(20):
        locks = [FileLock(tmp_path / "lock") for _ in range(16)]
        start, refused = threading.Barrier(len(locks)), []

        def take(lock: FileLock, start: threading.Barrier = start, refused: list = refused) -> None:
            start.wait()
            refused.append(lock.acquire())

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused.count(None) == 1
        for lock in locks:
            lock.release()


def test_a_file_system_without_locks_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some network file systems answer ENOLCK or ENOTSUP: a line, and no refusal. Any other error is one."""

    def refuse(number: int):
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    for number in (errno.ENOLCK, errno.ENOTSUP):
        monkeypatch.setattr(fcntl, "flock", refuse(number))
        with FileLock(tmp_path / "lock") as lock:
            assert lock.acquire() is None
        said = capsys.readouterr().err
        assert said.startswith(f"memdiff: warning: {tmp_path} is on a file system without locks")
        assert said.count("\n") == 1
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        FileLock(tmp_path / "lock").acquire()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """What it leads to may be anybody's, and would be written into."""
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        FileLock(tmp_path / "lock").acquire()
    assert (tmp_path / "mine").read_text() == "precious"
