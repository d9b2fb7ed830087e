"""One command in a fork of this process, under an audit hook: how it ended, what it touched.

What the interpreter opens is seen; what libraries open in C or Rust is not. `traced` runs the command as a process of
its own under strace, which sees both.
"""

import contextlib
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS, SECONDS, MEMORY = 60, 120, 4 << 30
SYSTEM = ("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev", "/etc", "/bin", "/sbin", "/opt")
USERS = "/etc/passwd"
FORBIDDEN = (USERS, "/etc/shadow", "/proc/self/environ", "/dev/zero")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
READS = {"open", "os.listdir", "os.scandir"}
WRITES = {
    "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1,
    "os.rename": 2, "os.link": 2, "os.symlink": 2,
}  # fmt: skip
TRACED = "openat,open,creat,rename,renameat,renameat2,unlink,unlinkat,execve"
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile")
NETWORK = ("socket.connect", "socket.getaddrinfo", "urllib.Request")


@dataclass(frozen=True)
class Allowed:
    """Where a command may read, and where it may write."""

    read: Sequence[Path]
    write: Sequence[Path]
    starts: Sequence[str] = ()  # programs that the unchanged folder's command starts, too


@dataclass
class Outcome:
    """How a command ended. `touched`: (kind, what) of what it may not do."""

    code: int | None
    said: str
    seconds: float
    processor_seconds: float
    touched: list[tuple[str, str]] = field(default_factory=list)

    def fault(self, executed: bool) -> str | None:
        """What is wrong with it, in a word; None where it did its work, or refused in a line."""
        kinds = {kind for kind, _ in self.touched}
        if executed or "code" in kinds or "start" in kinds:
            return "execution"
        if kinds & {"read", "write", "network"}:
            return "escape"
        if "Traceback (most recent call last)" in self.said:
            return "traceback"
        if self.code is None or self.code < 0:
            return "hung" if self.code in (None, -signal.SIGXCPU, -signal.SIGALRM) else "crash"
        if self.code not in (0, 2, 3, 4, 5, 7):
            return "exit code"
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", self.said):
            return "control characters"
        lines = [line for line in self.said.splitlines() if line.startswith("memdiff: error[")]
        if self.code and (len(lines) != 1 or len(lines[0]) > 3000):
            return "not one line"
        return None


def forked(
    words: Sequence[str], folder: Path, allowed: Allowed, environment: Mapping[str, str] | None = None
) -> Outcome:
    """`memdiff words`, run in `folder` by a fork of this process."""
    reader, writer = os.pipe()
    log = folder.with_name(folder.name + ".log")
    log.unlink(missing_ok=True)
    begun = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(words, folder, log, writer, allowed, environment or {})
    os.close(writer)
    noted, code, processor = _waited(pid, reader)
    touched = [tuple(json.loads(line)) for line in noted.decode(errors="replace").splitlines() if line.endswith("]")]
    return Outcome(code, log.read_text(errors="replace"), time.monotonic() - begun, processor, touched)


def _waited(pid: int, reader: int) -> tuple[bytes, int | None, float]:
    """What a child noted, its exit code, None where it had to be ended, and its processor seconds.

    Its limit is one of waiting: the time in which other processes had the processor that it wanted does not count.
    """
    noted, begun, ended = b"", time.monotonic(), False
    while not ended and time.monotonic() - begun - _kept_waiting(pid) < SECONDS:
        if select.select([reader], [], [], 1.0)[0]:
            part = os.read(reader, 1 << 16)
            noted, ended = noted + part, not part
        elif os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            ended = True  # something that it started holds the pipe
    if not ended:
        os.kill(pid, signal.SIGKILL)
    os.close(reader)
    _, status, used = os.wait4(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status) if ended else None
    return noted, code, used.ru_utime + used.ru_stime


def _kept_waiting(pid: int) -> float:
    """Seconds in which a process could have run and others did."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # ended, or a kernel without these figures
        return 0.0


def _child(
    words: Sequence[str], folder: Path, log: Path, writer: int, allowed: Allowed, environment: Mapping[str, str]
) -> None:
    """The child's side, which never returns."""
    code = 98
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        used = int(sum(os.times()[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, hard))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        os.environ.update(environment)
        os.chdir(folder)
        from memdiff.cli import main

        sys.addaudithook(_hook(writer, allowed, folder))
        try:
            main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def _hook(writer: int, allowed: Allowed, folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Notes what is not allowed; it stops nothing."""
    reads = [*map(str, (ROOT, sys.prefix, sys.base_prefix, sysconfig.get_paths()["stdlib"])), *SYSTEM]
    reads += [place for place in sys.path if place]  # an import looks there
    reads += [str(place.resolve()) for place in (*allowed.read, *allowed.write)]
    writes = [*(str(place.resolve()) for place in allowed.write), "/dev/", "/proc/self/"]
    busy = False

    def note(kind: str, what: object) -> None:
        os.write(writer, json.dumps([kind, str(what)[:300]]).encode() + b"\n")

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            if event == "open":
                path, mode, flags = arguments
                if not isinstance(path, int) and path is not None:
                    writing = bool(isinstance(flags, int) and flags & WRITING) or (mode and set("wax+") & set(mode))
                    follow = not (isinstance(flags, int) and flags & os.O_NOFOLLOW)  # a link is an error there
                    at(path, bool(writing), follow=follow)
            elif event in READS:
                if not isinstance(arguments[0], int) and arguments[0] is not None:
                    at(arguments[0], False)
            elif event in WRITES:
                for path in arguments[: WRITES[event]]:
                    if isinstance(path, str | bytes | os.PathLike):
                        at(path, True, follow=event in ("os.truncate", "os.chmod", "os.chown", "os.utime"))
            elif event in STARTS:
                words = arguments[1] if event == "subprocess.Popen" else arguments
                words = [words] if isinstance(words, str) else list(words)
                if os.path.basename(os.fsdecode(words[0])) not in allowed.starts:  # noqa: PTH119
                    note("start", words)
            elif event in NETWORK:
                if event == "urllib.Request" or not _local(arguments):
                    note("network", arguments[-1] if event == "socket.connect" else arguments[0])
            elif event == "exec":
                name = str(getattr(arguments[0], "co_filename", ""))
                if name.startswith(str(folder)):
                    note("code", name)
            elif event == "import" and arguments[1] and str(arguments[1]).startswith(str(folder)):
                note("code", arguments[1])
        finally:
            busy = False

    def at(path: Any, writing: bool, *, follow: bool = True) -> None:
        name = os.fsdecode(path)
        parent, base = os.path.split(name)
        real = os.path.realpath(name) if follow else os.path.join(os.path.realpath(parent or "."), base)  # noqa: PTH118
        places = writes if writing else reads
        inside = any(real == place or real.startswith(place.rstrip("/") + "/") for place in places)
        if not inside or real in FORBIDDEN:
            note("write" if writing else "read", real)

    return look


def _local(arguments: tuple[Any, ...]) -> bool:
    """Ranks speak to each other on this machine."""
    text = str(arguments)
    return any(word in text for word in ("127.0.0.1", "localhost", "::1", "'/", "b'/", os.uname().nodename))


def traced(
    words: Sequence[str], folder: Path, allowed: Allowed, environment: Mapping[str, str] | None = None
) -> Outcome:
    """`memdiff words` as a process of its own, under strace where that is installed."""
    trace = folder.with_name(folder.name + ".trace")
    prefix = ["strace", "-f", "-qq", "-e", f"trace={TRACED}", "-o", str(trace)]
    command = [*(prefix if shutil.which("strace") else []), sys.executable, "-m", "memdiff", *words]
    begun, before = time.monotonic(), os.times()
    known = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        outcome = subprocess.run(
            command, cwd=folder, env={**os.environ, **known, **(environment or {})}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=10 * SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(None, "", time.monotonic() - begun, 0.0)
    seconds, after = time.monotonic() - begun, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    touched = _of_trace(trace.read_text(errors="replace"), folder, allowed) if trace.is_file() else []
    return Outcome(outcome.returncode, outcome.stdout, seconds, processor, touched)


def _of_trace(text: str, folder: Path, allowed: Allowed) -> list[tuple[str, str]]:
    """What strace saw that is not allowed, of calls that succeeded."""
    reads = [
        *map(str, (ROOT, sys.prefix, sys.base_prefix)),
        *(place for place in sys.path if place),
        *SYSTEM,
        *(str(p.resolve()) for p in (*allowed.read, *allowed.write)),
    ]
    forbidden = [name for name in FORBIDDEN if name != USERS]  # the C library looks a home folder up there
    writes = [*(str(place.resolve()) for place in allowed.write), "/dev/", "/proc/"]
    touched = []
    for call, name, rest in re.findall(r"(\w+)\((?:AT_FDCWD, )?\"((?:[^\"\\]|\\.)*)\"(.*)", text):
        if "= -1" in rest or call == "execve":
            continue
        real = os.path.realpath(folder / name)
        writing = call != "openat" or any(word in rest for word in ("O_WRONLY", "O_RDWR", "O_CREAT"))
        if not any(real.startswith(place) for place in (writes if writing else reads)) or real in forbidden:
            touched.append(("write" if writing else "read", real))
    return touched
