"""A hostfile, in the form that DeepSpeed's launcher takes: `NAME slots=N` a line, N ranks on each. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.runtime.small_files import read_small_file

MOST_BYTES, MOST_RANKS = 1 << 20, 1024
FORM = "`NAME slots=N`, N ranks on the host of that name"
LINE = re.compile(r"(\S+)\s+slots=(\d{1,9})(\s.*)?")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@%-]{0,252}")  # what ssh can't take for an option


@dataclass(frozen=True)
class Host:
    """One line: a name that ssh knows, and how many ranks run there."""

    name: str
    slots: int


def read_hostfile(file: Path) -> tuple[Host, ...]:
    """Its hosts in order, at least one. ConfigError, naming the line, where it is none."""
    try:
        content = read_small_file(file, what="the hostfile", most_bytes=MOST_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"--hostfile {file}: no such file; it has a line for each host, {FORM}") from None
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"--hostfile {file} is no text; it has a line for each host, {FORM}") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        where = f"--hostfile {file}, line {number}"
        host = _host(text, where)
        if host.name in hosts:
            raise ConfigError(f"{where}: {host.name} stands there twice; give it one line, with all its slots")
        hosts[host.name] = host
    if not hosts:
        raise ConfigError(f"--hostfile {file} names no host; it has a line for each, {FORM}")
    ranks = sum(host.slots for host in hosts.values())
    if ranks > MOST_RANKS:
        raise ConfigError(f"--hostfile {file} asks for {ranks} ranks; at most {MOST_RANKS} are started")
    return tuple(hosts.values())


def _host(text: str, where: str) -> Host:
    match = LINE.fullmatch(text)
    if match is None or (match[3] and not match[3].strip().startswith("#")):
        raise ConfigError(f"{where} must be {FORM}, got {text[:80]!r}")
    name, slots = match[1], int(match[2])
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"{where}: {name[:80]!r} is no host's name")
    if not slots:
        raise ConfigError(f"{where}: {name} has no slots; give it slots=1 or more, or leave the line out")
    return Host(name, slots)
