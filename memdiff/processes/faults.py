"""Faults that tests ask for at a landmark: MEMDIFF_FAULT="KIND:point=PLACE,rank=N,nth=N,file=PATH". No torch.

Without the variable nothing of this file is ever called. `point` is how the place begins (loading, rollout, reward,
train, apply, save.begin, save.after_shard, save.before_manifest, save.before_rename, save.after_rename, retention),
`nth` the landmark there that is struck (1), `rank` whom (0). With `file`, which is made then, the fault strikes once
over all processes and restarts.
"""

import errno
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "MEMDIFF_FAULT"
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "term": signal.SIGTERM}


@dataclass
class Fault:
    """One fault, and how often its point was passed."""

    kind: str
    point: str
    rank: int = 0
    nth: int = 1
    file: Path | None = None
    _passed: int = field(default=0, init=False)

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """From the variable's value."""
        kind, _, rest = text.partition(":")
        options: dict[str, str] = {}
        for word in rest.split(","):
            key, _, value = word.partition("=")
            options[key] = value
        file = options.get("file")
        return cls(
            kind,
            options["point"],
            int(options.get("rank", 0)),
            int(options.get("nth", 1)),
            Path(file) if file else None,
        )

    def strike(self, place: str) -> None:
        """At a landmark: does it where it is its turn."""
        if not place.startswith(self.point) or int(os.environ.get("RANK", "0")) != self.rank:
            return
        self._passed += 1
        if self._passed < self.nth or (self._passed > self.nth and not self.kind.startswith("every")):
            return
        if self.file is not None:
            if self.file.exists():
                return
            self.file.touch()
        self._do(self.kind.removeprefix("every-"))

    def _do(self, kind: str) -> None:
        match kind:
            case "hang":  # in C: no Python of this thread runs any more, and signals wait
                _hang_in_c()
            case "sleep":
                time.sleep(100000)
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a fault that was asked for")
            case "memory":
                from torch import OutOfMemoryError

                raise OutOfMemoryError("CUDA out of memory (a fault that was asked for)")
            case "raise":
                raise RuntimeError("a fault that was asked for")
            case _:
                os.kill(os.getpid(), SIGNALS[kind])


def _hang_in_c() -> None:
    import ctypes

    mutex, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
    for _ in range(2):  # the second waits for the first
        library.pthread_mutex_lock(mutex)
