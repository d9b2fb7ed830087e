"""What a round's images are before and after they are made.

Shapes: n images of this rank, N images over all ranks, P reward parts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from memdiff.chain.noise import Noise
from memdiff.processes import landmarks

Metrics = dict[str, Any]  # numbers, scalar tensors or lists of them, until they are written


@dataclass(frozen=True)
class Batch:
    """The images that this rank is to make in a round."""

    images: range  # numbers in the round
    prompts: Sequence[str]  # of those images; empty strings where the model has none
    num_images: int  # N, over all ranks
    noise: Noise
    all_prompts: Sequence[str] = ()  # of all ranks' images, where the model takes prompts


@dataclass
class Clock:
    """Seconds by phase of one round, once they are `read`.

    On a CUDA device a phase is between two events in the stream, so that it does not wait: what the host does inside it
    without the device counts too, since the second event is behind it.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds what passes inside to the phase's seconds."""
        start, before = time.perf_counter(), self._event()
        try:
            with landmarks.at(name):
                yield
        finally:
            after = self._event()
            if before is not None and after is not None:
                self._events.append((name, before, after))
            else:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """`seconds` of all phases so far. Waits for the device."""
        for name, start, end in self._events:
            end.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + start.elapsed_time(end) / 1000
        self._events.clear()
        return self.seconds

    def _event(self) -> torch.cuda.Event | None:
        """Behind all that the device has been told so far; None on a CPU."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


@dataclass
class Round:
    """What a method knows of the round it works in."""

    batch: Batch
    clock: Clock
    advance: Callable[[int], None] = lambda count: None  # progress, in image-steps
