"""Who a rank's ancestors are, and the start of the watcher that waits for their end. No torch.

`memdiff train` starts DeepSpeed's runner, that starts launch.py, and that the ranks. DeepSpeed's processes live on when
another is killed, and so would the ranks. So each has a watcher, a small process beside it, that can also end a rank
which is stopped, or hangs where no Python runs.
"""

import atexit
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from memdiff.processes.identity import identity, is_orphan, lives, parent_of, pid_of, words_of
from memdiff.processes.shared_memory import remove_buffer

VARIABLE = "MEMDIFF_ANCESTORS"  # `memdiff=PID:START`, set by `memdiff train` for all that follows from it
LAUNCH, RUNNER = "deepspeed.launcher.launch", "deepspeed.launcher.runner"
SET_BY_LAUNCH = "CROSS_RANK"  # in the environment of each rank that launch.py starts
HOSTS_BY_LAUNCH = "CROSS_SIZE"  # how many hosts it says there are
GONE = "0:0"  # the identity of a process that ended before it could be looked up
FAREWELL = " is gone, so"  # in what a watcher says
LAUNCHERS = ("deepspeed's launch.py", "the deepspeed runner")


def named(name: str, process: str) -> str:
    """A process and its name as one word, `NAME=PID:START`; `process` is the part PID:START."""
    return f"{name}={process}"


def parsed(entry: str) -> tuple[str, str]:
    """(name, identity) of `NAME=PID:START`."""
    name, _, process = entry.partition("=")
    return name, process


def ancestors_of_environment() -> dict[str, str]:
    """What `memdiff train` or `memdiff sample` says of itself; empty where neither started this process."""
    entry = os.environ.get(VARIABLE)
    return dict([parsed(entry)]) if entry else {}


def ancestors() -> dict[str, str]:
    """Identities by name: memdiff, and those of DeepSpeed's launcher that started this process.

    In an order that blames the right one where several are gone: the runner ends at once when launch.py or memdiff
    does, launch.py by another rank's watcher when memdiff does, and memdiff seconds after either. A process that
    something else started has none of the launcher's: its parent may end first, as a shell does.
    """
    parent, identities = os.getppid(), ancestors_of_environment()
    words = words_of(parent)
    if LAUNCH not in words:
        lost = SET_BY_LAUNCH in os.environ and (not words or is_orphan(os.getpid()))
        return identities | {LAUNCHERS[0]: GONE} if lost else identities
    identities = identities | {LAUNCHERS[0]: identity(parent) or GONE}
    above = parent_of(parent)
    words = words_of(above) if above is not None else []
    if above is not None and any(word == RUNNER or Path(word).name == "deepspeed" for word in words):
        identities[LAUNCHERS[1]] = identity(above) or GONE
    elif not words or is_orphan(parent):
        identities[LAUNCHERS[1]] = GONE
    return identities


def connection() -> str | None:
    """The far end of the ssh connection by which DeepSpeed's own launcher started this rank on another host.

    None where there is none, and where `memdiff train` made it: then it is watched at the far end already. DeepSpeed's
    launcher ends a run by letting go of it, so that its end is a request to stop and no loss.
    """
    if int(os.environ.get(HOSTS_BY_LAUNCH, "1")) == 1 or VARIABLE in os.environ:
        return None
    pid = os.getppid()
    while pid is not None and pid > 1:
        if words_of(pid)[:1] and words_of(pid)[0].startswith("sshd: "):
            return identity(pid)
        pid = parent_of(pid)
    return None


def first_gone(processes: dict[str, str]) -> str | None:
    """`NAME (pid N)` of the first that has ended; its name alone where it had before anybody looked."""
    for name, process in processes.items():
        if not lives(process):
            return name if process == GONE else f"{name} (pid {pid_of(process)})"
    return None


def watch_ancestors(*watched_too: str, descriptors: Sequence[int] = ()) -> None:
    """Starts this rank's watcher: the rank ends when one of its ancestors does, or at once if one is gone already.

    `watched_too` are the watcher's options, with the descriptors that they name (see `watcher`). Does nothing where no
    launcher started this process.
    """
    watched, far_end = ancestors(), connection()
    own = identity(os.getpid())
    if not (watched or far_end) or own is None:
        return
    command = [
        sys.executable,
        "-m",
        "memdiff.processes.watcher",
        *watched_too,
        *([named("--connection", far_end)] if far_end else []),
        named(f"rank {os.environ.get('RANK', '0')}", own),
    ]
    command += [named(name, process) for name, process in watched.items()]
    # A session of its own: Ctrl-C is for the rank, and nobody who waits for the run's session waits for this.
    watcher = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, pass_fds=descriptors
    )
    atexit.register(_end, watcher)


def farewell(gone: str, label: str) -> str:
    """What happened, what follows, what to do."""
    return f"{gone}{FAREWELL} {label} ends too; the same command goes on from the last checkpoint"


def _end(watcher: "subprocess.Popen[bytes]") -> None:
    watcher.kill()
    watcher.wait()
    remove_buffer()
