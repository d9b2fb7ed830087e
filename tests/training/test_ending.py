"""A rank's process ends with its own exit code, whatever libraries do while Python is taken down."""

import signal
import subprocess
import sys

import pytest

from tests.helpers.processes import ROOT

# C's own hook, which runs when a process is taken down, stands for a library's thread that aborts then.
PROGRAM = """
import atexit, ctypes, sys
from memdiff.errors import PeerError
from memdiff.processes.ending import end_after_hooks
from memdiff.runtime.exit_codes import guarded
if {guard}:
    end_after_hooks()
atexit.register(lambda: print("a later hook"))
library = ctypes.CDLL(None)
library.__cxa_atexit(library.abort, None, None)
def action():
    print("work done")
    {action}
{call}
"""


def ended(action: str, call: str = "guarded(action)", *, guard: bool = True) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(action=action, call=call, guard=guard)
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("action", "call", "code"),
    [
        ("return 0", "guarded(action)", 0),
        ("return 75", "guarded(action)", 75),
        ("raise PeerError('gone')", "guarded(action)", 6),
        ("raise KeyError('a bug')", "guarded(action)", 1),
        ("return 3", "action()", 0),
    ],
)
def test_a_rank_ends_with_its_own_code_after_its_hooks(action: str, call: str, code: int) -> None:
    done = ended(action, call)
    assert done.returncode == code, done.stderr
    assert done.stdout.split("\n") == ["work done", "a later hook", ""]


def test_without_it_the_library_decides() -> None:
    assert ended("return 0", guard=False).returncode == -signal.SIGABRT
