"""DeepSpeed's CPU operators, compiled before the first test and not inside one, where the time limits of tests are.

    python -m tests.helpers.operators   # what every test session does first; in a fresh clone it takes minutes

memdiff's own loader does it: one process at a time, and past a lock that a killed build left.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from memdiff.doctor.compiler import OPS_GPU
from tests.helpers.processes import run_python

SECONDS_TO_BUILD = 3600.0  # ends a build that hangs; it takes 1 to 3 minutes on free cores

BUILD = """
from memdiff.engine.operators import load_cpu_adam, load_shared_memory_operator

load_cpu_adam()
load_shared_memory_operator()
"""


def build_operators(say: Callable[[str], None]) -> None:
    """Builds into TORCH_EXTENSIONS_DIR what is missing there for these versions; in milliseconds where nothing is.

    Tells `say` what takes long. A failure is told and no error: most tests need no operator, and those that do fail
    with the compiler's message.
    """
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / f"built_{'_'.join([sys.implementation.cache_tag, version('torch'), version('deepspeed')])}"
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


if __name__ == "__main__":
    import tests.conftest  # noqa: F401 - sets the folder and the PATH

    build_operators(lambda words: print(words, file=sys.stderr, flush=True))  # noqa: T201
