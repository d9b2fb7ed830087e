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
    """Seconds by phase of one round. A phase waits for the device at both ends, so that its time is its own."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds what passes inside to the phase's seconds."""
        self._wait()
        start = time.perf_counter()
        try:
            with landmarks.at(name):
                yield
        finally:
            self._wait()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Round:
    """What a method knows of the round it works in."""

    batch: Batch
    clock: Clock
    advance: Callable[[int], None] = lambda count: None  # progress, in image-steps
