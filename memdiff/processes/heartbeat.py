"""A page of memory in which a rank says where it is and when it got there, for its watcher to read. No torch."""

import mmap
import os
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Self

SIZE = 512
HEADER = struct.Struct("<dddI")  # time of the last beat, seconds until the next, those once a stop is asked for, bytes
WAITING = "waiting for the other ranks"
LOADING_SECONDS = 7200.0  # until the first round: downloads, compilers
STOPPING_SECONDS = 20.0  # without a landmark, once a stop was asked for
MEETING, MEETING_SECONDS = "meeting the other ranks", 2.0  # the same where there is nothing yet to let go of
OF_DEEPSPEED = ("apply", "save")  # places of which DeepSpeed's own work, with collectives in it, is a part
UNHURRIED = OF_DEEPSPEED  # a stop does not shorten these


@dataclass(frozen=True)
class Beat:
    """The last sign of life. `limit` is in seconds from `time` (of time.monotonic) on, 0 for none."""

    time: float
    limit: float
    limit_once_asked: float
    place: str

    @property
    def waits(self) -> bool:
        """Whether other ranks may be what it waits for: DeepSpeed meets them too, and says nothing of it."""
        return self.place.startswith((WAITING, *OF_DEEPSPEED))


class Heartbeat:
    """The page, in the rank and in the watcher. A beat that is read while it is written is read again soon."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.limit = descriptor, LOADING_SECONDS
        self._page = mmap.mmap(descriptor, SIZE)

    @classmethod
    def make(cls) -> Self:
        """A new page, which lives as long as somebody has it open."""
        if sys.platform.startswith("linux"):  # memory of no file system, which could be full
            descriptor = os.memfd_create("memdiff_heartbeat")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.truncate(descriptor, SIZE)
        return cls(descriptor)

    def beat(self, place: str) -> None:
        """The rank is at `place`, now."""
        text = place.encode(errors="replace")[: SIZE - HEADER.size]
        hurried = MEETING_SECONDS if place == MEETING else STOPPING_SECONDS
        asked = self.limit if place.startswith(UNHURRIED) else min(self.limit or hurried, hurried)
        self._page[: HEADER.size + len(text)] = HEADER.pack(time.monotonic(), self.limit, asked, len(text)) + text

    def last(self) -> Beat:
        """What was last said."""
        moment, limit, asked, length = HEADER.unpack(self._page[: HEADER.size])
        text = self._page[HEADER.size : HEADER.size + min(length, SIZE - HEADER.size)]
        return Beat(moment, limit, asked, text.decode(errors="replace"))
