"""Two hosts on one machine: network namespaces with an sshd each where these can be had, else an `ssh` that stays here.

A namespace's host has a network address, a hostname and process numbers of its own, and can be cut off or killed whole.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memdiff.processes.identity import PROC, all_pids, children, kill, words_of

NAMES = ("a", "b")
HERE = "MEMDIFF_HOST_HERE"  # in the environment of what runs on a host that is this machine
STAYS = f'''#!{sys.executable}
"""ssh whose far end is this machine: options, a name, a command."""
import os, subprocess, sys
words = sys.argv[1:]
while words and words[0].startswith("-"):
    words = words[2:] if words[0] in ("-o", "-p") else words[1:]
host, command = words[0], " ".join(words[1:])
if host not in {NAMES}:
    sys.stderr.write(f"ssh: connect to host {{host}} port 22: No route to host\\n")
    sys.exit(255)
environment = os.environ | {{"{HERE}": host}}
sys.exit(subprocess.run(["sh", "-c", command], start_new_session=True, env=environment).returncode % 256)
'''
PDSH_STAYS = f'''#!{sys.executable}
"""pdsh whose hosts are this machine: -S -f N -w a,b words."""
import os, subprocess, sys, time
words, hosts = sys.argv[1:], []
while words and words[0].startswith("-"):
    if words[0] == "-w":
        hosts = words[1].split(",")
    words = words[1:] if words[0] == "-S" else words[2:]
started = [
    subprocess.Popen(
        ["sh", "-c", " ".join(words).replace("%n", str(number)).replace("%h", host)],
        start_new_session=True, env=os.environ | {{"{HERE}": host}},
    )
    for number, host in enumerate(hosts)
]
sys.exit(max(process.wait() % 256 for process in started))
'''


@dataclass
class Hosts:
    """`path` is a folder with an `ssh` (and a `pdsh`) to them, to come first in PATH."""

    path: Path
    inits: dict[str, int]  # the first process of each namespace; empty without namespaces

    @property
    def has_namespaces(self) -> bool:
        """Whether they are more than names of this machine."""
        return bool(self.inits)

    def kill(self, name: str) -> None:
        """All of a host's processes at once, as where its power fails."""
        if self.inits:
            kill([self.inits.pop(name)])
            return
        mark = f"{HERE}={name}".encode()
        kill([pid for pid in all_pids() if mark in _environment(pid)])


def why_no_namespaces() -> str | None:
    """What this machine lacks for hosts of their own."""
    missing = [tool for tool in ("ip", "unshare", "ssh-keygen") if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "namespaces need root"
    if missing or _sshd() is None:
        return f"there is no {', '.join(missing) or 'sshd'}"
    made = subprocess.run(["ip", "netns", "add", "memdiff-try"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "memdiff-try"], capture_output=True, check=False)
    return "network namespaces are not permitted" if made.returncode else None


@contextmanager
def here(folder: Path) -> Iterator[Hosts]:
    """Hosts that are this machine by two names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("ssh", STAYS), ("pdsh", PDSH_STAYS)):
        file = folder / name
        file.write_text(content)
        file.chmod(0o755)
    yield Hosts(folder, {})


@contextmanager
def in_namespaces(folder: Path) -> Iterator[Hosts]:
    """Hosts a (10.77.0.1) and b (10.77.0.2), this machine being 10.77.0.254. OSError where something is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_ssh(folder)
    _run("ip", "link", "add", "mdbridge", "type", "bridge")  # whoever has made one already keeps it
    try:
        _run("ip", "addr", "add", "10.77.0.254/24", "dev", "mdbridge")
        _run("ip", "link", "set", "mdbridge", "up")
        yield Hosts(folder, {name: _host(folder, name, number) for number, name in enumerate(NAMES, start=1)})
    finally:
        for name in NAMES:
            pids = subprocess.run(["ip", "netns", "pids", f"md-{name}"], capture_output=True, text=True, check=False)
            kill([int(pid) for pid in pids.stdout.split()])
            subprocess.run(["ip", "netns", "del", f"md-{name}"], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", f"mdv{name}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", "mdbridge"], capture_output=True, check=False)


def start_again(folder: Path, hosts: Hosts, name: str) -> None:
    """Brings it back after `kill`."""
    if hosts.has_namespaces:
        hosts.inits[name] = _sshd_in(folder, name)


def cut_off(name: str, *, cut: bool = True) -> None:
    """Takes a host in a namespace off the network, without a word to either side, or puts it back."""
    _run("ip", "link", "set", f"mdv{name}", "down" if cut else "up")


def _host(folder: Path, name: str, number: int) -> int:
    _run("ip", "netns", "add", f"md-{name}")
    _run("ip", "link", "add", f"mdv{name}", "type", "veth", "peer", "name", "eth0", "netns", f"md-{name}")
    _run("ip", "link", "set", f"mdv{name}", "master", "mdbridge", "up")
    for words in (
        ("addr", "add", f"10.77.0.{number}/24", "dev", "eth0"), ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
    ):  # fmt: skip
        _run("ip", "netns", "exec", f"md-{name}", "ip", *words)
    return _sshd_in(folder, name)


def _sshd_in(folder: Path, name: str) -> int:
    """The pid of a host's first process."""
    sshd = f"hostname {name}; exec {_sshd()} -D -e -f {folder / 'sshd_config'}"
    words = ["ip", "netns", "exec", f"md-{name}", "unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
    log = (folder / f"sshd_{name}.log").open("ab")
    process = subprocess.Popen(
        [*words, "sh", "-c", sshd], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    deadline = time.monotonic() + 20
    ssh = [str(folder / "ssh"), name, "hostname"]
    while subprocess.run(ssh, capture_output=True, text=True, check=False).stdout.strip() != name:
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"no sshd on {name}: {(folder / f'sshd_{name}.log').read_text()[-500:]}")
        time.sleep(0.2)
    return next(pid for pid in children(process.pid) if words_of(pid))


def _write_ssh(folder: Path) -> None:
    Path("/run/sshd").mkdir(exist_ok=True)
    for key in ("host_key", "key"):
        (folder / key).unlink(missing_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\nStrictModes no\nPidFile none\n"
        "PermitRootLogin yes\nUsePAM no\nPrintMotd no\nMaxStartups 100\n"
    )
    known = f"IdentityFile {folder}/key\nUserKnownHostsFile /dev/null\nStrictHostKeyChecking no\nLogLevel ERROR\n"
    lines = [f"Host {name}\nHostName 10.77.0.{number}\n{known}" for number, name in enumerate(NAMES, start=1)]
    (folder / "ssh_config").write_text("".join(lines))
    wrapper = folder / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)


def _sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def _environment(pid: int) -> list[bytes]:
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
