"""Which processes live, told apart from later ones with the same number. Linux's /proc; no torch."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
# Of /proc/PID/stat, counted after the name (man 5 proc).
STATE, PARENT, GROUP, SESSION, START, EXIT_CODE = 0, 1, 2, 3, 19, 49


def identity(pid: int) -> str | None:
    """`PID:START`, which no other process of this boot has; None where the process has ended."""
    fields = _stat(pid)
    return None if fields is None else f"{pid}:{fields[START]}"


def own_identity() -> str:
    """This process's; without /proc its number alone."""
    return identity(os.getpid()) or f"{os.getpid()}:"


def pid_of(process: str) -> int:
    """The number in an identity."""
    return int(process.partition(":")[0])


def lives(process: str) -> bool:
    """Whether the process of this identity has not ended. True where there is no /proc to look it up."""
    return not PROC.joinpath("self").exists() or identity(pid_of(process)) == process


def parent_of(pid: int) -> int | None:
    """The parent's number; None where the process has ended."""
    fields = _stat(pid)
    return None if fields is None else int(fields[PARENT])


def is_orphan(pid: int) -> bool:
    """Whether the process that started it has ended: whoever adopts its children lives in another process group.

    False for one that leads a group, and where the adopter shares the group, as a container's first process does with
    all that a script started: nothing tells such an adopter from the process that was.
    """
    own = _stat(pid)
    if own is None or int(own[GROUP]) == pid:
        return False
    above = _stat(int(own[PARENT]))
    return above is None or above[GROUP] != own[GROUP]


def killed_by(process: str) -> int:
    """The signal that ended it, as its parent is about to learn; 0 where it ended by itself, lives, or is forgotten."""
    fields = _fields(pid_of(process))
    if fields is None or fields[STATE] != "Z" or process != f"{pid_of(process)}:{fields[START]}":
        return 0
    return int(fields[EXIT_CODE]) & 0x7F


def words_of(pid: int) -> list[str]:
    """A process's command line; empty where it has ended, and while it ends."""
    try:
        text = (PROC / str(pid) / "cmdline").read_text(errors="replace").rstrip("\0")
    except OSError:
        return []
    return text.split("\0") if text else []


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP or a debugger holds it."""
    fields = _stat(pid)
    return fields is not None and fields[STATE] in "Tt"


def pending(pid: int, numbers: Sequence[int]) -> int | None:
    """The first of these signals that was sent to the process and waits, since it blocks it; None where none does."""
    try:
        lines = (PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    waiting = 0
    for line in lines:
        if line.startswith(("SigPnd:", "ShdPnd:")):
            waiting |= int(line.split()[1], 16)
    return next((number for number in numbers if waiting >> (number - 1) & 1), None)


def rank_of(pid: int) -> str | None:
    """RANK in the environment that a rank of DeepSpeed's launcher was started with; None for any other process."""
    words = words_of(pid)
    if "memdiff" not in words or not any(word.startswith("--local_rank=") for word in words):
        return None
    try:
        entries = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((entry[5:].decode() for entry in entries if entry.startswith(b"RANK=")), None)


def all_pids() -> Iterator[int]:
    """Every process that can be seen."""
    if PROC.is_dir():
        yield from (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def of_session(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    return [pid for pid in all_pids() if (fields := _stat(pid)) is not None and int(fields[SESSION]) == session]


def children(pid: int) -> list[int]:
    """The processes that it started and that have not ended."""
    return [other for other in all_pids() if parent_of(other) == pid]


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    by_parent: dict[int, list[int]] = {}
    for other in all_pids():
        parent = parent_of(other)
        if parent is not None:
            by_parent.setdefault(parent, []).append(other)
    pids, waiting = [], [pid]
    while waiting:
        below = by_parent.get(waiting.pop(), [])
        pids += below
        waiting += below
    return pids


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    """A signal to each that still lives."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name; None for a process that has ended, reaped or not."""
    fields = _fields(pid)
    return None if fields is None or fields[STATE] in "ZX" else fields


def _fields(pid: int) -> list[str] | None:
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split() or None
    except OSError:
        return None
