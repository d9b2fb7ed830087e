"""The `lock` file in an operator's build folder: whether anybody holds it, and what to do where nobody does. No torch.

torch.utils.cpp_extension makes that file before it builds or loads an extension and removes it afterwards. A process
that is killed in between leaves it, and every later one waits for ever for it to go. Its maker has the file open
meanwhile, which /proc shows; compilers that outlive their maker stand in the folder.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from memdiff.processes.identity import PROC, all_pids

LOCK = "lock"
BUILDERS = ("ninja", "c++", "g++", "clang++", "cc1plus", "as", "ld", "collect2", "nvcc", "cicc", "ptxas")
SECONDS_BETWEEN_LOOKS = 0.2


def holders(folder: Path) -> list[int]:
    """Processes of this machine that build in `folder`: they have its lock open, or compile there.

    Those of other users can't be seen, unless by root.
    """
    try:
        lock = (folder / LOCK).stat()
    except OSError:
        return []
    return [pid for pid in all_pids() if _has_open(pid, lock) or _compiles_in(pid, folder)]


def is_stale(folder: Path) -> bool:
    """Whether there is a lock that nobody holds. False where it can't be known: without /proc, another user's."""
    try:
        visible = os.geteuid() in (0, (folder / LOCK).stat().st_uid)
    except OSError:
        return False
    return visible and PROC.joinpath("self").exists() and not holders(folder)


def clear_lock(folder: Path, say: Callable[[str], None]) -> None:
    """Returns when there is no lock: waits for one that is held, removes one that nobody holds, and says so.

    Only for one process at a time: of two that look and then remove, the second could remove a new lock.
    """
    announced = False
    while (folder / LOCK).exists():
        if is_stale(folder):
            with suppress(FileNotFoundError):
                (folder / LOCK).unlink()
                say(f"removed {folder / LOCK}, which a build that was stopped had left")
            return
        if not announced:
            others = ", ".join(map(str, holders(folder)))
            who = f"process {others}, which builds" if others else "whoever builds"
            say(f"waiting for {who} in {folder} (if nobody does: rm {folder / LOCK})")
            announced = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _has_open(pid: int, file: os.stat_result) -> bool:
    with suppress(OSError):  # it ended, or is another user's
        for descriptor in (PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(descriptor.stat(), file):
                    return True
    return False


def _compiles_in(pid: int, folder: Path) -> bool:
    try:
        name = (PROC / str(pid) / "comm").read_text().strip()
        return name in BUILDERS and (PROC / str(pid) / "cwd").samefile(folder)
    except OSError:
        return False
