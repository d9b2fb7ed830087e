"""A run over several hosts: `memdiff train --hostfile FILE`. No torch, no deepspeed.

DeepSpeed's own launcher goes to the hosts by pdsh, which asks for nothing, passes no signal on, and leaves the ranks
behind when it is killed. So memdiff goes there itself: one ssh connection a host, at whose far end `processes.host`
starts DeepSpeed's launch.py as the runner would. The connection carries requests to stop one way and what ends the
other, and with it ends all that was started there.
"""

import base64
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memdiff.errors import ConfigError
from memdiff.processes.file_lock import HOLDER, Holder
from memdiff.processes.host import MARK, SECONDS_TO_MEET
from memdiff.processes.identity import own_identity
from memdiff.processes.launched import SECONDS_BETWEEN_LOOKS, SECONDS_FOR_THE_OTHERS
from memdiff.processes.stops import Stops
from memdiff.training.hostfile import Host

# A host that is gone is noticed after 15 s; nobody is there to type a password.
SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3",
)  # fmt: skip
SECONDS_TO_LOOK = 60.0
SECONDS_TO_END = 5.0  # after `end`, for the far ends to clear up
LONG_TO_MEET = "600"  # seconds: a host that is lost is noticed here long before
LOST_CODE = 255  # of ssh
SENT = (
    "MEMDIFF_", "HF_", "TRANSFORMERS_", "DIFFUSERS_", "TOKENIZERS_", "TORCH", "PYTORCH_", "PYTHON", "NCCL_", "GLOO_",
    "UCX_", "DS_", "OMP_", "MKL_", "CUBLAS_", "LD_LIBRARY_PATH", "XDG_CACHE_HOME",
)  # fmt: skip
WORDS_OF_SSH = re.compile(r"(ssh: |Timeout, server|Connection |client_loop|Host key|\S+@\S+: Permission denied).*")


@dataclass(frozen=True)
class Seen:
    """What a host says of itself."""

    host: Host
    address: str
    port: int
    gpus: int
    versions: Mapping[str, str]


def command_on(host: Host) -> list[str]:
    """Runs `processes.host` there: the same Python in the same folder."""
    paths = [f"PYTHONPATH={os.environ['PYTHONPATH']}"] if "PYTHONPATH" in os.environ else []
    words = ["exec", "env", *paths, sys.executable, "-m", "memdiff.processes.host"]
    return [*SSH, host.name, f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(words)}"]


def look_at(hosts: Sequence[Host]) -> list[Seen]:
    """All hosts, at the same time. ConfigError, in a line, where one can't be reached or can't take part."""
    sys.stdout.write(f"looking at {len(hosts)} host(s): {', '.join(host.name for host in hosts)[:200]}\n")
    sys.stdout.flush()
    with ThreadPoolExecutor(max_workers=min(32, len(hosts))) as pool:
        seen = list(pool.map(_look_at_one, hosts))
    first = seen[0]
    for other in seen:
        name, slots = other.host.name, other.host.slots
        for package, version in first.versions.items():
            if other.versions.get(package) != version:
                raise ConfigError(
                    f"host {name} has {package} {other.versions.get(package)} and {first.host.name} has {version}; "
                    "install the same on all hosts"
                )
        if bool(other.gpus) != bool(first.gpus):
            raise ConfigError(f"host {name} has {other.gpus} GPUs and {first.host.name} has {first.gpus}; use one kind")
        if other.gpus and slots > other.gpus:
            raise ConfigError(f"the hostfile has slots={slots} for {name}, which has {other.gpus} GPUs")
    return seen


def _look_at_one(host: Host) -> Seen:
    try:
        done = subprocess.run(
            command_on(host),
            input="{}\n", capture_output=True, text=True, errors="replace", timeout=SECONDS_TO_LOOK, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"host {host.name} did not answer within {SECONDS_TO_LOOK:.0f} s over ssh") from None
    except FileNotFoundError:
        raise ConfigError("--hostfile needs ssh, which is not installed; Debian has it as openssh-client") from None
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode == LOST_CODE:
        raise ConfigError(
            f"host {host.name} can't be reached: {said[-1]}; `ssh {host.name} true` has to work without a password"
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise ConfigError(
            f"host {host.name} can't run {sys.executable} -m memdiff.processes.host in {Path.cwd()}: {said[-1]}; "
            "Python's environment and this folder must lie at the same paths on every host"
        )
    content = json.loads(lines[-1].removeprefix(MARK))
    return Seen(host, content["address"], content["port"], content["gpus"], content["versions"])


def meeting_place(seen: Sequence[Seen]) -> str:
    """The address of the first host by which all of them reach it: MASTER_ADDR where that is set, else by which this
    machine did, else this machine's own."""
    first, others = seen[0].address, [other.address for other in seen[1:]]
    if "MASTER_ADDR" in os.environ:
        return os.environ["MASTER_ADDR"]
    far = next((address for address in others if not _is_loopback(address)), None)
    if not _is_loopback(first) or far is None:
        return first or "127.0.0.1"
    with socket.socket(socket.AF_INET6 if ":" in far else socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((far, 9))  # sends nothing
        return str(way.getsockname()[0])


def _is_loopback(address: str) -> bool:
    return not address or address.startswith("127.") or address == "::1"


@dataclass
class Connection:
    """The ssh to one host."""

    host: Host
    process: "subprocess.Popen[bytes]"
    reported: dict[str, Any] = field(default_factory=dict)

    def tell(self, word: str) -> None:
        """A line to its far end, if that is there."""
        assert self.process.stdin is not None
        if self.process.stdin.closed:
            return
        with suppress(OSError):
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Lets go of the far end, which has ended."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    @property
    def is_lost(self) -> bool:
        """Whether it ended without its far end's report of how."""
        return self.process.returncode is not None and "code" not in self.reported


class OnHosts:
    """The launched processes of all hosts, as `processes.launched.Launched` shows those of one."""

    def __init__(self, connections: Sequence[Connection], log: Path, stops: Stops) -> None:
        self.connections, self.stops = connections, stops
        self.first_gone: str | None = None  # `rank N (pid P on HOST)`
        self.how: str | None = None  # it ended, where a connection did
        self.is_urgent = self.cleared = False
        self._log, self._read = log, 0
        self._blamed: Connection | None = None
        self._first_end: float | None = None
        self._asked = self._ended = False

    def end_at_once(self) -> None:
        """A second request to stop."""
        self.is_urgent = True

    def wait(self) -> int:
        """Until everything has ended, or is out of reach. Returns the exit code of where it began."""
        ended_at = 0.0
        while any(connection.process.poll() is None for connection in self.connections):
            self._look()
            now = time.monotonic()
            if not self._ended and (self.is_urgent or self._is_over(now)):
                self._ended, ended_at = True, now
                self._tell_all("end")
            if self._ended and now - ended_at > SECONDS_TO_END:
                for connection in self.connections:
                    connection.process.kill()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._look()
        return self._outcome()

    def _look(self) -> None:
        ended = [connection for connection in self.connections if connection.process.poll() is not None]
        self._read_reports()  # after that: what has ended has said all that it had to
        for connection in ended:
            connection.close()
            self._note(connection)
        if self.stops.requested and not self._asked:
            self._asked = True
            self._tell_all(f"stop {int(self.stops.number or signal.SIGTERM)}")

    def _is_over(self, now: float) -> bool:
        return self._first_end is not None and now - self._first_end > SECONDS_FOR_THE_OTHERS

    def _tell_all(self, word: str) -> None:
        for connection in self.connections:
            connection.tell(word)

    def _note(self, connection: Connection) -> None:
        """The first host where something ended."""
        if self._first_end is None:
            self._first_end = time.monotonic()
        if self._blamed is None or (connection.is_lost and not self._ended and self.how is None):
            self._blamed = connection
            if connection.is_lost and not self._ended:
                self.how = f"host {connection.host.name} was lost ({self._words_of_ssh()})"

    def _read_reports(self) -> None:
        """What the far ends wrote into the ranks' log since the last look."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        ends = []
        for line in whole.decode(errors="replace").splitlines():
            if line.startswith(MARK):
                with suppress(ValueError):
                    ends += self._take(json.loads(line.removeprefix(MARK)))
        for connection in ends:  # once all is read: how a host ended may follow on what ended there
            self._note(connection)

    def _take(self, content: Any) -> list[Connection]:
        """The connection that the report is of, where it tells of an end."""
        name = content.pop("on", None) if isinstance(content, dict) else None
        connection = next((connection for connection in self.connections if connection.host.name == name), None)
        if connection is None:
            return []
        connection.reported |= content
        return [connection] if content.keys() & {"gone", "code"} else []

    def _outcome(self) -> int:
        if self.how is not None:
            return 1  # ssh's own 255 reads as a rank's SIGHUP, which asks to stop
        blamed = self._blamed or self.connections[0]
        killed = [c for c in self.connections if 128 < c.reported.get("code", 0) < 256 and "gone" in c.reported]
        if killed:  # by a signal: the others are what it led to
            blamed = killed[0]
        gone = blamed.reported.get("gone")
        self.cleared = bool(gone) and (self._ended or blamed.reported.get("cleared", False))
        self.first_gone = gone and gone.replace(")", f" on {blamed.host.name})")
        return int(blamed.reported.get("code", blamed.process.returncode))

    def _words_of_ssh(self) -> str:
        with suppress(OSError):
            for line in reversed(self._log.read_text(errors="replace").splitlines()):
                if WORDS_OF_SSH.match(line):
                    return line[:200]
        return "its connection ended"


def connect(
    seen: Sequence[Seen], arguments: Sequence[str], environment: Mapping[str, str], stderr: Any
) -> list[Connection]:
    """Starts launch.py on every host. `environment` is what its ranks get beside their host's own."""
    world = {one.host.name: list(range(one.host.slots)) for one in seen}
    world_info = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    address, port = meeting_place(seen), seen[0].port
    connections = []
    for number, one in enumerate(seen):
        words = [
            f"--world_info={world_info}", f"--node_rank={number}", f"--master_addr={address}",
            f"--master_port={port}", "--log_level=critical", "--module", "memdiff", *arguments,
        ]  # fmt: skip
        process = subprocess.Popen(
            command_on(one.host), stdin=subprocess.PIPE, stderr=stderr, start_new_session=True, bufsize=0
        )
        order = {"words": words, "environment": dict(environment), "ranks": one.host.slots, "on": one.host.name}
        connections.append(Connection(one.host, process))
        connections[-1].tell(json.dumps(order))
    return connections


def environment_of_ranks(rank_environment: Mapping[str, str], seen: Sequence[Seen]) -> dict[str, str]:
    """Of this machine's environment what is about the run, and who holds its folder."""
    sent = {name: value for name, value in rank_environment.items() if name.startswith(SENT)}
    if "OMP_NUM_THREADS" not in os.environ:
        sent.pop("OMP_NUM_THREADS", None)  # each host has cores of its own number
    if "DS_ACCELERATOR" not in os.environ:
        sent.pop("DS_ACCELERATOR", None)
    if not seen[0].gpus:
        sent["DS_ACCELERATOR"] = "cpu"
    sent.setdefault(SECONDS_TO_MEET, LONG_TO_MEET)
    sent[HOLDER] = json.dumps(asdict(Holder.here(own_identity())))
    return sent
