"""What memdiff starts ends with it, whichever of the chain is killed: memdiff, DeepSpeed's runner, launch.py."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from memdiff.processes import ancestors
from memdiff.processes.bound import bound_command, bound_environment
from memdiff.processes.heartbeat import SIZE, Heartbeat
from memdiff.processes.identity import descendants, identity, is_orphan, kill, lives, of_session, own_identity, pid_of
from memdiff.processes.launched import Launched
from memdiff.processes.shared_memory import buffer_of
from memdiff.processes.stops import Stops

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30.0  # far more than is needed: the machine may be busy

WAITS = """
import pathlib, subprocess, sys, time
pathlib.Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
time.sleep(300)
"""
# Starts the rest of its arguments and waits, as DeepSpeed's processes do. Its first argument is the name it goes by.
STARTS = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[2:]))"
# The kernel hangs up on a stopped process whose group its parent's end orphans (setpgid(2)), before a watcher looks.
RANK = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from memdiff.processes.ancestors import watch_ancestors
watch_ancestors()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
pathlib.Path(sys.argv[1] + ".new").write_text(f"{os.getpid()} {child.pid}")
pathlib.Path(sys.argv[1] + ".new").rename(sys.argv[1])
child.wait()
"""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def python(code: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | more
    command = [sys.executable, "-c", code, *arguments]
    # A session of its own, as `memdiff train` gives its launcher: whatever adopts its orphans is in another one.
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are killed after the test, with all they started."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        kill([process.pid, *descendants(process.pid)])
        with process:
            pass


def test_identity_tells_a_process_from_a_later_one(ended: list) -> None:
    """A number with another start time is another process; one that has ended and is not yet reaped does not live."""
    assert lives(own_identity()) and not lives(f"{os.getpid()}:1")
    child = python("import time; time.sleep(300)")
    ended.append(child)
    known = identity(child.pid)
    assert known is not None and lives(known) and child.pid in descendants(os.getpid())
    child.kill()
    until(lambda: not lives(known), "a zombie lives")
    assert identity(child.pid) is None and child.pid not in of_session(os.getsid(0))


def test_a_bound_process_is_killed_with_its_parent(tmp_path: Path, ended: list) -> None:
    """kill -9 of the parent; the child is a plain module that knows nothing of it."""
    (tmp_path / "waits.py").write_text(WAITS)
    code = (
        "import os, subprocess, sys; from memdiff.processes.bound import bound_command, bound_environment\n"
        "subprocess.call(bound_command('waits', sys.argv[1]), env=os.environ | bound_environment())"
    )
    file = tmp_path / "pid"
    parent = python(code, str(file), PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    ended.append(parent)
    until(lambda: file.is_file() and file.read_text(), "the child did not start")
    child = identity(int(file.read_text()))
    assert child is not None
    parent.kill()
    until(lambda: not lives(child), "the child outlives its parent")


def test_a_bound_process_ends_where_its_parent_is_gone_already(tmp_path: Path) -> None:
    """Killed between fork and the call to the kernel: the parent's number no longer fits.

    Any other number will do; that of init may be this process's own, where it is a container's first.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), ancestors.VARIABLE: f"memdiff={os.getpid() + 1}:1"}
    done = subprocess.run(bound_command("this"), env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 6 and done.stdout == ""
    environment |= bound_environment()
    done = subprocess.run(bound_command("this"), env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Zen of Python" in done.stdout


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("killed", ["memdiff", "the deepspeed runner", "deepspeed's launch.py"])
def test_a_rank_ends_with_each_of_its_ancestors(killed: str, stopped: bool, tmp_path: Path, ended: list) -> None:
    """kill -9 of one of three; the rank, its child, and what waits for it are gone, and a line says why.

    A rank stopped by SIGSTOP stands for all that can't act: it is ended as well.
    """
    memdiff = python("import time; time.sleep(300)")
    ended.append(memdiff)
    file = tmp_path / "pids"
    launch = [sys.executable, "-c", STARTS, ancestors.LAUNCH, sys.executable, "-c", RANK, str(file)]
    known = {ancestors.VARIABLE: f"memdiff={identity(memdiff.pid)}", "RANK": "1"}
    runner = python(STARTS, ancestors.RUNNER, *launch, **known)
    ended.append(runner)
    until(file.is_file, "the rank did not start")
    rank, child = (int(word) for word in file.read_text().split())
    launcher = ancestors.parent_of(rank)
    assert launcher is not None
    everything = [identity(pid) for pid in (rank, child, launcher)]
    if stopped:
        os.kill(rank, signal.SIGSTOP)
    victim = {"memdiff": memdiff.pid, "the deepspeed runner": runner.pid, "deepspeed's launch.py": launcher}[killed]
    os.kill(victim, signal.SIGKILL)
    until(lambda: not any(lives(process) for process in everything if process), f"{everything} outlive {killed}")
    assert runner.stderr is not None
    said = runner.stderr.read()
    assert said.startswith(f"memdiff: error[6]: {killed} (pid {victim}) is gone, so rank 1 ends too"), said


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "by itself"])
def test_a_rank_that_ends_as_it_meets_the_others_leaves_no_shared_memory(
    killed: bool, tmp_path: Path, ended: list
) -> None:
    """Its watcher takes away what DeepSpeed's operator named and the rank had not come to; else the rank does."""
    code = RANK.replace("child.wait()", f"child.kill(); time.sleep({300 if killed else 0})")
    where = {"MASTER_ADDR": f"test_{uuid.uuid4().hex}", "MASTER_PORT": "1", "RANK": "3"}
    buffer = buffer_of(where)
    assert buffer is not None and buffer.name.endswith(f"_{where['MASTER_ADDR']}_1_3") and buffer_of({}) is None
    with suppress(FileNotFoundError):  # where there is no shared memory there is nothing to leave
        buffer.touch()
    rank = python(code, str(tmp_path / "rank"), **bound_environment(), **where)
    ended.append(rank)
    until((tmp_path / "rank").exists, "the rank starts")
    if killed:
        assert buffer.exists() or not buffer.parent.is_dir()
        kill([rank.pid])
    until(lambda: not buffer.exists(), "its shared memory stays")


def test_a_heartbeat_needs_no_room_on_any_disk() -> None:
    """Its page is of no file system: one that is full kills by SIGBUS whoever writes to a new page of it."""
    descriptor = Heartbeat.make().descriptor
    if sys.platform.startswith("linux"):
        places = [Path(place) for place in ("/dev/shm", tempfile.gettempdir())]
        mounted = {place.stat().st_dev for place in places if place.exists()}
        assert os.fstat(descriptor).st_dev not in mounted
    assert os.fstat(descriptor).st_size == SIZE and not os.get_inheritable(descriptor)


def test_a_rank_without_a_launcher_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent is a shell or a test: that may end first."""
    monkeypatch.delenv(ancestors.VARIABLE, raising=False)
    assert ancestors.ancestors() == {}
    before = descendants(os.getpid())
    ancestors.watch_ancestors()
    assert descendants(os.getpid()) == before


def test_a_rank_whose_ancestor_is_gone_before_it_starts_ends(tmp_path: Path, ended: list) -> None:
    """The number belongs to a process that started at another time."""
    rank = python(RANK, str(tmp_path / "pids"), **{ancestors.VARIABLE: f"memdiff={os.getpid()}:1", "RANK": "0"})
    ended.append(rank)
    assert rank.wait(timeout=SECONDS) == -signal.SIGKILL and rank.stderr is not None
    assert f"memdiff (pid {os.getpid()}) is gone, so rank 0 ends too" in rank.stderr.read()


@pytest.mark.parametrize("killed", ["the deepspeed runner", "deepspeed's launch.py"])
def test_a_launcher_that_ended_before_its_rank_looked_is_missed(killed: str, tmp_path: Path, ended: list) -> None:
    """kill -9 while the rank's Python starts: an orphan of the launcher ends too, by what adopted it."""
    file, go = tmp_path / "pids", tmp_path / "go"
    slow = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)\n{RANK}"
    launch = [sys.executable, "-c", STARTS, ancestors.LAUNCH, sys.executable, "-c", slow, str(file)]
    runner = python(STARTS, ancestors.RUNNER, *launch, **{ancestors.SET_BY_LAUNCH: "0", "RANK": "0"})
    ended.append(runner)
    until(lambda: len(descendants(runner.pid)) == 2, "the rank did not start")
    launcher, rank = descendants(runner.pid)
    processes = [identity(pid) for pid in (launcher, rank)]
    os.kill(runner.pid if killed == "the deepspeed runner" else launcher, signal.SIGKILL)
    until(lambda: is_orphan(launcher) or is_orphan(rank), "nobody is an orphan")
    go.touch()
    until(lambda: not any(lives(process) for process in processes if process), "an orphan lives on")
    assert runner.stderr is not None
    assert f"{killed} is gone, so rank 0 ends too" in runner.stderr.read()


ENDING = """
import os
from memdiff.processes import ancestors
assert ancestors.ancestors() == {}, "its parent lives, and is no launcher"
ancestors.words_of = lambda pid: []
assert ancestors.ancestors() == {"deepspeed's launch.py": ancestors.GONE}
ancestors.words_of = lambda pid: [ancestors.LAUNCH] if pid == os.getppid() else []
assert list(ancestors.ancestors().values()) == [ancestors.identity(os.getppid()), ancestors.GONE]
"""


def test_a_launcher_that_is_ending_has_ended(ended: list) -> None:
    """The kernel takes a killed process's command line away before its children are adopted.

    In a process that this one started: of this one's own parent, nothing can be seen where it is a container's first.
    """
    child = python(ENDING, **{ancestors.SET_BY_LAUNCH: "0"})
    ended.append(child)
    _, said = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, said


WITHOUT_WATCHER = """
import os, signal, time
from memdiff.processes.identity import children, kill
from memdiff.processes.rank import begin_rank
stops, _ = begin_rank()
assert len(children(os.getpid())) == 1
kill(children(os.getpid()))
while children(os.getpid()):
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGUSR1)
assert stops.requested
"""


def test_a_signal_after_the_watchers_end_says_nothing(ended: list) -> None:
    """As launch.py's SIGTERM to a rank that is ending: Python writes each signal into the pipe that the watcher read,
    and of one that is broken says so in the log, where the cause of a run's end is looked for."""
    rank = python(WITHOUT_WATCHER, **{ancestors.VARIABLE: f"memdiff={own_identity()}", "RANK": "0"})
    ended.append(rank)
    _, said = rank.communicate(timeout=SECONDS)
    assert rank.returncode == 0 and said == "", said


FORKING_RANK = """
import os, time
if os.fork() == 0:  # as before the exec of a compiler, on a machine where that takes its time
    time.sleep(1.5)
    os._exit(0)
time.sleep(1.5 + 9)
os._exit(3)
"""


DEAF_RANK = """
import pathlib, signal, sys, time
from memdiff.processes.stops import BLOCKED
for number in BLOCKED:
    signal.signal(number, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(300)
"""


def test_a_second_request_ends_what_the_first_did_not(tmp_path: Path, ended: list) -> None:
    """A rank that no request reaches, as one that hangs in C: the first leaves it time, the second kills it."""
    file = tmp_path / "deaf"
    command = [sys.executable, "-c", DEAF_RANK, str(file), "memdiff", "--local_rank=0"]
    environment = os.environ | {"RANK": "0", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, start_new_session=True, env=environment)
    ended.append(process)
    until(file.is_file, "the rank did not start")
    stops = Stops(lambda: None)
    launched = Launched(process, stops)
    stops.ask(signal.SIGTERM)
    alive: list[bool] = []

    def asks_again() -> None:
        alive.append(process.poll() is None)
        launched.end_at_once()

    timer = threading.Timer(2.0, asks_again)
    timer.start()
    assert launched.wait() == -signal.SIGKILL and alive == [True]
    assert [pid_of(rank) for rank in launched.ranks] == [process.pid] and launched.is_urgent
    timer.join()


LAUNCHER = """
import os, subprocess, sys, time
KILLED = "import os, time; time.sleep(1.5); os.kill(os.getpid(), 9)"
LOST_IT = '''
import os, sys, time
while " Z " not in open(f"/proc/{sys.argv[3]}/stat").read():
    time.sleep(0.05)
time.sleep(0.2)
os._exit(6)
'''
def start(rank, program, *words):
    command = [sys.executable, "-c", program, "memdiff", "--local_rank=0", *words]
    return subprocess.Popen(command, env=os.environ | {"RANK": rank})
killed = start("1", KILLED)
code = start("0", LOST_IT, str(killed.pid)).wait()
time.sleep(3)  # nobody has asked for the other one's end yet
sys.exit(code)
"""


def test_a_rank_that_was_killed_is_told_from_one_that_lost_it() -> None:
    """The launcher ends with 6, which is rank 0's; memdiff saw that rank 1 was killed first."""
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER], start_new_session=True)
    launched = Launched(process, Stops(lambda: None))
    assert launched.wait() == 256 - signal.SIGKILL and process.returncode == 6
    assert launched.first_gone is not None and launched.first_gone.startswith("rank 1 (pid ")


def test_the_end_of_a_ranks_child_is_not_a_ranks() -> None:
    """A child that has the rank's own command line ends; seconds later the rank does, by itself: nothing was killed."""
    command = [sys.executable, "-c", FORKING_RANK, "memdiff", "--local_rank=0"]
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"RANK": "0"})
    launched = Launched(process, Stops(lambda: None))
    assert launched.wait() == 3
    assert [pid_of(rank) for rank in launched.ranks] == [process.pid] and not launched.cleared
