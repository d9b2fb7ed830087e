"""DeepSpeed's CPU operators, compiled before the first test and not inside one, where the time limits of tests are.

    python -m tests.operators   # what every test session does first; in a fresh clone it takes minutes

One process builds at a time: others wait for it. A build that was killed leaves torch's lock file, for which every
later start would wait for ever; one that no living process holds open is deleted.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from memdiff.doctor.compiler import OPS_GPU
from tests.processes import run_python

SECONDS_TO_BUILD = 3600.0  # ends a build that hangs; it takes 1 to 3 minutes on free cores

BUILD = """
from deepspeed.accelerator import get_accelerator

for name in ("CPUAdamBuilder", "ShareMemCommBuilder"):
    builder = get_accelerator().create_op_builder(name)
    if builder is not None and builder.is_compatible(verbose=False):
        builder.load(verbose=False)
"""


def build_operators(say: Callable[[str], None]) -> None:
    """Builds into TORCH_EXTENSIONS_DIR what is missing there for these versions; in milliseconds where nothing is.

    Tells `say` what takes long. A failure is told and no error: most tests need no operator, and those that do fail
    with the compiler's message.
    """
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / f"built_{'_'.join([sys.implementation.cache_tag, version('torch'), version('deepspeed')])}"
    with (folder / "tests.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process compiles DeepSpeed's operators in {folder}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        delete_stale_locks(folder, say)
        if built.exists() and all((folder / name / f"{name}.so").is_file() for name in OPS_GPU):
            return
        say(f"compiling DeepSpeed's operators into {folder}, once: 1 to 3 minutes on free cores")
        began = time.monotonic()
        try:
            done = run_python("-c", BUILD, seconds=SECONDS_TO_BUILD)
        except subprocess.TimeoutExpired:
            say(f"not done after {SECONDS_TO_BUILD:.0f} s: given up")
            return
        if done.returncode == 0:
            built.touch()
            say(f"compiled in {time.monotonic() - began:.0f} s")
        else:
            say(f"the operators could not be compiled:\n{(done.stdout + done.stderr)[-2000:]}")


def delete_stale_locks(folder: Path, say: Callable[[str], None]) -> None:
    """Deletes `folder`/*/lock where no process holds the file open, as torch's builder does until it is done."""
    locks = list(folder.glob("*/lock"))
    if not locks or not Path("/proc/self/fd").exists():
        return
    held = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # another user's, or gone
            held.add(str(entry.readlink()))
    for lock in locks:
        with suppress(FileNotFoundError):
            if str(lock.resolve()) in held or lock.stat().st_uid != os.getuid():
                continue
            lock.unlink()
            say(f"{lock}: no process holds it, so its build was killed; deleted")


if __name__ == "__main__":
    import tests.conftest  # noqa: F401 - sets the folder and the PATH

    build_operators(lambda words: print(words, file=sys.stderr, flush=True))  # noqa: T201
