"""`memdiff train --hostfile`: what a mistake says, and the connections to two hosts, which here are this machine.

An `ssh` that stays here and a launch.py that starts two small ranks stand in the place of the real ones, which
`python -m tests.faults --only hosts` runs, in network namespaces with sshd where there are some.
"""

import json
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import pytest

from memdiff.engine.meeting import seconds_to_meet
from memdiff.errors import ConfigError
from memdiff.processes.file_lock import FileLock, Holder
from memdiff.processes.host import MARK
from memdiff.processes.identity import all_pids, lives, own_identity, words_of
from memdiff.processes.stops import Stops
from memdiff.training import hosts as module
from memdiff.training.hostfile import Host, read_hostfile
from memdiff.training.hosts import Connection, OnHosts, Seen, connect, look_at, meeting_place
from memdiff.training.launcher import how_it_ended, outcome
from memdiff.training.run_folder import RunFolder
from tests.helpers.hosts import here
from tests.helpers.processes import ROOT, memdiff, run

RECIPE = "model: {kind: embedded}\nmethod: {kind: reinforce}\nreward: [{kind: digits}]\n"

MISTAKES = {
    "": "names no host",
    "# nobody\n\n": "names no host",
    "a\n": "line 1 must be `NAME slots=N`",
    "a slots=1\nb slots=two\n": "line 2 must be `NAME slots=N`",
    "a slots=0\n": "line 1: a has no slots",
    "a slots=1\na slots=2\n": "line 2: a stands there twice",
    "-oProxyCommand=reboot slots=1\n": "is no host's name",
    "a slots=1 gpus=2\n": "line 1 must be",
    "a slots=2000\n": "asks for 2000 ranks; at most 1024",
    "a slots=1\n\0\n": "line 2 must be",
}


@pytest.mark.parametrize("content", MISTAKES, ids=range(len(MISTAKES)))
def test_a_hostfiles_mistakes_are_told_with_their_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "hosts"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_hostfile(file)
    assert MISTAKES[content] in str(caught.value) and "\n" not in str(caught.value)


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    """Against DeepSpeed's own parser: comments, spaces, order."""
    from deepspeed.launcher.runner import fetch_hostfile

    file = tmp_path / "hosts"
    file.write_text("# ours\nworker-1 slots=4\n\n  user@worker-0\tslots=16  # the big one\n10.0.0.7 slots=1\n")
    assert {host.name: host.slots for host in read_hostfile(file)} == dict(fetch_hostfile(str(file)) or {})
    assert [host.name for host in read_hostfile(file)] == ["worker-1", "user@worker-0", "10.0.0.7"]


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name, words in (("none", "no such file"), ("", "is a folder"), ("bytes", "no text")):
        with pytest.raises(ConfigError, match=words):
            read_hostfile(tmp_path / name)


def test_the_command_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    """As a user meets it: --gpus beside it, and a host that ssh does not reach."""
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "hosts"
    recipe.write_text(RECIPE)
    file.write_text("a slots=1\nnowhere slots=1\n")
    train = ["train", recipe, "--out", tmp_path / "run", "--hostfile", file]
    both = memdiff(*train, "--gpus", "2")
    assert both.returncode == 2 and both.stderr.startswith("memdiff: error[2]: --gpus and --hostfile both")
    with here(tmp_path / "bin") as hosts:
        command = [sys.executable, "-m", "memdiff", *map(str, train)]
        path = f"{hosts.path}{os.pathsep}{os.environ['PATH']}"
        unreachable = run(command, env={"PATH": path, "PYTHONPATH": str(ROOT)})
    assert unreachable.returncode == 2 and len(unreachable.stderr.splitlines()) == 1
    assert "host nowhere can't be reached: ssh: connect to host nowhere" in unreachable.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`ssh a` and `ssh b` stay here. Returns a folder."""
    with here(tmp_path / "bin") as hosts:
        monkeypatch.setenv("PATH", f"{hosts.path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}{os.pathsep}{ROOT}")
        yield tmp_path


def test_hosts_are_looked_at(two_hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say who they are; a Python that is not there, and what differs between them, is told by name."""
    a, b = Host("a", 1), Host("b", 2)
    seen = look_at([a, b])
    assert [one.host.name for one in seen] == ["a", "b"] and all(one.port > 0 for one in seen)
    assert seen[0].versions["deepspeed"] == seen[1].versions["deepspeed"] != "missing"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ConfigError, match=r"host a can't run /nowhere/python .* same paths on every host"):
        look_at([a, b])
    said = {
        "versions": (
            seen[0],
            replace(seen[1], versions={**seen[1].versions, "torch": "1.0"}),
            "host b has torch 1.0 and a",
        ),
        "kinds": (replace(seen[0], gpus=0), replace(seen[1], gpus=2), "host b has 2 GPUs and a has 0"),
        "slots": (replace(seen[0], gpus=4), replace(seen[1], gpus=1), "slots=2 for b, which has 1 GPUs"),
    }
    for first, second, words in said.values():
        answers = {"a": first, "b": second}
        monkeypatch.setattr(module, "_look_at_one", lambda host, answers=answers: answers[host.name])
        with pytest.raises(ConfigError, match=words):
            look_at([a, b])


@pytest.mark.parametrize("text", ["soon", "", "0", "-1", "nan", "inf", "1e9"])
def test_a_time_to_meet_that_is_none_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable's name, before anything waits."""
    monkeypatch.setenv("MEMDIFF_SECONDS_TO_MEET", text)
    with pytest.raises(ConfigError, match=f"MEMDIFF_SECONDS_TO_MEET must be seconds.* got '{text}'$"):
        seconds_to_meet()
    monkeypatch.setenv("MEMDIFF_SECONDS_TO_MEET", "2.5")
    assert seconds_to_meet() == 2.5


def test_where_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of the first host that the others can reach, never this machine's loopback beside a host elsewhere."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)

    def place(*addresses: str) -> str:
        return meeting_place([Seen(Host(str(n), 1), address, 1, 0, {}) for n, address in enumerate(addresses)])

    assert place("10.0.0.1", "10.0.0.2") == "10.0.0.1"
    assert place("", "") == "127.0.0.1" and place("127.0.0.1", "127.0.0.2") == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "10.9.9.9")
    assert place("127.0.0.1", "10.0.0.2") == "10.9.9.9"


LAUNCH = textwrap.dedent("""
    # launch.py's part: a rank with its number, whose end it waits for
    import os, subprocess, sys
    number = next(word.partition("=")[2] for word in sys.argv if word.startswith("--node_rank="))
    rank = "import os, signal, time; signal.pthread_sigmask(signal.SIG_UNBLOCK, [10]);" + (
        "signal.signal(10, lambda *_: os._exit(75)); open(os.environ['READY'] + os.environ['RANK'], 'w');" +
        "time.sleep(600)")
    command = [sys.executable, "-c", rank, "memdiff", "--local_rank=0"]
    sys.exit(subprocess.call(command, env={**os.environ, "RANK": number}) % 256)
""")


@contextmanager
def launched(folder: Path) -> Iterator[tuple[OnHosts, threading.Thread, list[int]]]:
    """Two hosts with a rank each, being waited for in a thread; its exit code comes into the list."""
    package = folder / "packages" / "deepspeed" / "launcher"
    package.mkdir(parents=True)
    for file, content in (("launch.py", LAUNCH), ("__init__.py", ""), ("../__init__.py", "")):
        (package / file).write_text(content)
    log = folder / "launcher.log"
    hosts = [Seen(Host(name, 1), "", 29511, 0, {}) for name in ("a", "b")]
    with log.open("wb") as stderr:
        on_hosts = OnHosts(
            connect(hosts, ["train"], {"READY": str(folder / "ready")}, stderr), log, Stops(lambda: None)
        )
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(on_hosts.wait()))
        try:
            until(lambda: (folder / "ready0").exists() and (folder / "ready1").exists())
            thread.start()
            until(lambda: all(connection.reported.get("ranks") for connection in on_hosts.connections))
            yield on_hosts, thread, codes
        finally:
            on_hosts.end_at_once()
            if thread.ident is not None:
                thread.join(120)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def ranks(folder: Path) -> dict[str, int]:
    """The pids of this test's, by their numbers."""
    numbers = {}
    for pid in all_pids():
        with suppress(OSError):
            entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            if "--local_rank=0" in words_of(pid) and f"READY={folder / 'ready'}" in entries:
                numbers.update({entry.removeprefix("RANK="): pid for entry in entries if entry.startswith("RANK=")})
    return numbers


def test_a_request_reaches_the_ranks_of_all_hosts(two_hosts: Path) -> None:
    with launched(two_hosts) as (on_hosts, thread, codes):
        on_hosts.stops.ask(signal.SIGTERM)
        thread.join(300)
        assert codes == [75] and not on_hosts.cleared
        assert [connection.reported["code"] for connection in on_hosts.connections] == [75, 75]


def test_a_rank_that_is_killed_is_named_with_its_host_and_ends_the_others(
    two_hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_FOR_THE_OTHERS", 1.0)
    with launched(two_hosts) as (on_hosts, thread, codes):
        rank = ranks(two_hosts)["1"]
        os.kill(rank, signal.SIGKILL)
        thread.join(300)
        log = two_hosts / "launcher.log"
        assert how_it_ended(on_hosts, codes[0], log) == f"rank 1 (pid {rank} on b) was killed by SIGKILL"
        assert on_hosts.cleared and not ranks(two_hosts)


def test_a_host_that_is_lost_is_named_and_nothing_lives_on(two_hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_FOR_THE_OTHERS", 1.0)
    with launched(two_hosts) as (on_hosts, thread, codes):
        on_hosts.connections[1].process.kill()
        thread.join(300)
        assert how_it_ended(on_hosts, codes[0], two_hosts / "launcher.log").startswith("host b was lost (")
        until(lambda: not ranks(two_hosts))


class Gone:
    """An ssh that lost its host."""

    returncode = 255

    def __init__(self, pipe: IO[bytes]) -> None:
        self.stdin = pipe

    def poll(self) -> int:
        return self.returncode


def test_a_host_that_is_lost_is_no_request_to_stop(tmp_path: Path, capsys: Any) -> None:
    """Exit code 6, though ssh's own code is what a rank has that SIGHUP ended."""
    log = tmp_path / "launcher.log"
    log.write_text("Timeout, server b not responding.\n")
    with (tmp_path / "pipe").open("wb") as pipe:
        on_hosts = OnHosts([Connection(Host("b", 1), cast(Any, Gone(pipe)))], log, Stops(lambda: None))
        assert outcome(RunFolder(tmp_path), log, on_hosts, on_hosts.wait()) == 6
    assert "error[6]: host b was lost (Timeout, server b not responding.)" in capsys.readouterr().err


def test_an_end_that_is_read_at_once_with_its_cause_is_no_lost_host(tmp_path: Path) -> None:
    """A slow look finds ssh ended and both reports in the log: the rank that was killed, and how launch.py ended."""
    log = tmp_path / "launcher.log"
    gone, code = {"on": "b", "gone": "rank 1 (pid 7)"}, {"on": "b", "code": 247, "cleared": False}
    log.write_text("".join(f"{MARK}{json.dumps(report)}\n" for report in (gone, code)))
    with (tmp_path / "pipe").open("wb") as pipe:
        on_hosts = OnHosts([Connection(Host("b", 1), cast(Any, Gone(pipe)))], log, Stops(lambda: None))
        assert how_it_ended(on_hosts, on_hosts.wait(), log) == "rank 1 (pid 7 on b) was killed by SIGKILL"


def test_ranks_end_with_the_way_to_memdiff(two_hosts: Path) -> None:
    """As where memdiff is killed: the kernel closes its end of the connections."""
    with launched(two_hosts) as (on_hosts, thread, _):
        for connection in on_hosts.connections:
            assert connection.process.stdin is not None
            connection.process.stdin.close()
        thread.join(300)
        assert not ranks(two_hosts) and not thread.is_alive()


def test_a_rank_on_another_host_shares_the_lock_of_memdiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By process and host, as `memdiff train` says them; the same number on another host is a stranger's."""
    from memdiff.processes.file_lock import HOLDER, holders_of_environment

    with FileLock(tmp_path / "lock") as lock:
        assert lock.acquire() is None and lives(own_identity())
        rank = FileLock(tmp_path / "lock")
        for host, shares in (("elsewhere", False), (Holder.here("").host, True)):
            monkeypatch.setenv(HOLDER, json.dumps({"process": own_identity(), "host": host}))
            assert (rank.acquire(friends=holders_of_environment()) is None) == shares
        rank.release()
