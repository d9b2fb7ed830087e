"""`python -m memdiff.processes.host`: one host's part of a run, at the far end of an ssh connection. No torch.

Its input is a line of JSON, an order, and then a word a line: `stop N` asks to stop, N being the signal; `end` ends all
at once, and so does the end of the input: memdiff, or the way to it, is gone. What it reports is a line of JSON behind
MARK: about itself on stdout, and on stderr, between the ranks' own lines, how many ranks run, which ended
first, and how launch.py did.
"""

import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from typing import IO, Any

from memdiff.processes.ancestors import LAUNCH
from memdiff.processes.bound import bound_command, bound_environment
from memdiff.processes.cores import cores_here
from memdiff.processes.identity import kill, of_session
from memdiff.processes.launched import Launched
from memdiff.processes.stops import Stops

MARK = "memdiff-host: "
SECONDS_TO_MEET = "MEMDIFF_SECONDS_TO_MEET"  # in the ranks' environment: for all of them to be there
PACKAGES = ("memdiff", "torch", "deepspeed")  # which have to be the same on all hosts


class OnThisHost(Launched):
    """launch.py and its ranks here. The end of the first rank is reported at once, since other hosts wait for it."""

    name = ""  # in the hostfile
    _reported = False

    def _search(self) -> None:
        before = len(self.ranks)
        super()._search()
        if len(self.ranks) > before:
            report(sys.stderr, on=self.name, ranks=len(self.ranks))

    def _note_ends(self) -> None:
        super()._note_ends()
        if self.first_gone is not None and not self._reported:
            self._reported = True
            report(sys.stderr, on=self.name, gone=self.first_gone)


def report(stream: IO[str], **content: Any) -> None:
    """One line. Who reads may be gone."""
    with suppress(OSError):
        stream.write(f"{MARK}{json.dumps(content)}\n")
        stream.flush()


def look() -> dict[str, Any]:
    """What a run has to know of this host before it starts."""
    return {
        "host": socket.gethostname(),
        "address": (os.environ.get("SSH_CONNECTION", "").split() or [""] * 3)[2],  # by which ssh came here
        "port": free_port(),
        "gpus": sum(re.fullmatch(r"nvidia\d+", file.name) is not None for file in Path("/dev").iterdir()),
        "versions": {"Python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def launch_here(name: str, words: list[str], environment: Mapping[str, str], ranks: int, orders: IO[str]) -> int:
    """launch.py with `words`, until all has ended that it started. Returns its exit code."""
    stops = Stops(lambda: None)
    everything = {**os.environ, **environment, **bound_environment()}
    everything.setdefault("OMP_NUM_THREADS", str(max(1, cores_here() // ranks)))
    everything["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{everything.get('PATH', '')}"
    process = subprocess.Popen(
        bound_command(LAUNCH, *words, requests_wait=True),
        env=everything, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    launched = OnThisHost(process, stops)
    launched.name = name
    stops.listen()
    Thread(target=_obey, args=(orders, launched), daemon=True).start()
    with stops.second_calls(launched.end_at_once):
        code = launched.wait()
    report(sys.stderr, on=name, code=code, cleared=launched.cleared)
    return code


def _obey(orders: IO[str], launched: Launched) -> None:
    """Until the input ends, which ends everything."""
    for line in orders:
        word, _, number = line.strip().partition(" ")
        if word == "end":
            break
        if word == "stop":
            launched.stops.ask(int(number))
    launched.end_at_once()
    kill(of_session(launched.process.pid))  # without waiting for the next look


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def main() -> int:
    """Reads the order and does it."""
    order = json.loads(sys.stdin.readline() or "{}")
    if "words" not in order:
        report(sys.stdout, **look())
        return 0
    code = launch_here(order["on"], order["words"], order["environment"], order["ranks"], sys.stdin)
    return code % 256


if __name__ == "__main__":
    sys.exit(main())
