"""Seconds of an update without a ledger, then its bytes with one: counting slows the code that is counted.

The same for memdiff and its peers, on torch and memdiff's ledger alone, which need nothing else of memdiff.
What exists before the update is found by asking Python for every tensor there is: no side can forget to name its own.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from memdiff.planner.ledger import Event, Ledger

Phase = Callable[[str], contextlib.AbstractContextManager[None]]
Update = Callable[[Phase], None]  # told how to mark its phases; a peer that has none leaves it alone

POINTS = 600  # of a timeline


@dataclass
class Seconds:
    """Of one update, by phase. On a GPU a phase waits for the device at both ends."""

    device: torch.device
    phases: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds what passes inside."""
        wait(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            wait(self.device)
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(update: Update, *, updates: int, warmup: int, device: torch.device) -> dict[str, Any]:
    """`seconds_update` is the median, `seconds_fastest` the least: where others use the machine, the steadier one.

    `cpu_seconds_fastest` are those that all threads of this process worked, without what others took.
    """
    totals: list[float] = []
    worked: list[float] = []
    phases: list[dict[str, float]] = []
    for number in range(warmup + updates):
        clock, start = Seconds(device), time.process_time()
        with clock.phase("all"):
            update(clock.phase)
        if number >= warmup:
            worked.append(time.process_time() - start)
            totals.append(clock.phases.pop("all"))
            phases.append(clock.phases)
    middle = {name: statistics.median(one.get(name, 0.0) for one in phases) for name in phases[-1]}
    return {
        "seconds_update": statistics.median(totals),
        "seconds_fastest": min(totals),
        "seconds_all": totals,
        "cpu_seconds_fastest": min(worked),
        "seconds_phases": middle,
    }


def bytes_of(
    update: Update,
    *,
    device: torch.device,
    weights: Sequence[torch.Tensor] = (),
    reward: Sequence[torch.Tensor] = (),
    gradients: Sequence[torch.Tensor] = (),
    timeline: bool = False,
) -> dict[str, Any]:
    """The most bytes that lived at once, in all, by phase and by category at the peak.

    Tensors that exist before the update count; those named belong to their category, the others to the optimizer.
    """
    gc.collect()
    ledger = Ledger(device=device, events=timeline)
    with ledger:
        ledger.enter(every_tensor(), "optimizer")
        ledger.enter(weights, "weights")
        ledger.enter(reward, "reward")
        ledger.enter(gradients, "gradients")
        resident = ledger.live_bytes
        before = len(ledger.events or ())
        ledger.reset_peak()
        update(ledger.phase)
    figures: dict[str, Any] = {
        "peak_bytes": ledger.peak_bytes,
        "resident_bytes": resident,
        "peak_phases": {name: peak.bytes for name, peak in ledger.peaks.items() if name},
        "peak_items": {name: size for name, size in ledger.peak.categories.items() if size},
        "flops": sum(ledger.flops.values()),
    }
    if ledger.events is not None:
        figures["timeline"] = timeline_of(ledger.events, before)
    return figures


def every_tensor() -> list[torch.Tensor]:
    """All that Python knows of and that has one storage: a sparse tensor has none of its own."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return [tensor for tensor in tensors if tensor.layout == torch.strided]


def timeline_of(events: Sequence[Event], before: int) -> dict[str, Any]:
    """Live bytes by category while an update runs, `POINTS` of them: each stretch of events at its highest.

    `before` events are of what existed at the start.
    """
    live: dict[str, int] = {}
    for event in events[:before]:
        live[event.category] = live.get(event.category, 0) + event.bytes
    stretch = max(1, -(-(len(events) - before) // POINTS))
    points: list[tuple[dict[str, int], str]] = []
    for start in range(before, len(events), stretch):
        highest, at = -1, (dict(live), events[start].phase)
        for event in events[start : start + stretch]:
            live[event.category] = live.get(event.category, 0) + event.bytes
            if sum(live.values()) > highest:
                highest, at = sum(live.values()), (dict(live), event.phase)
        points.append(at)
    names = sorted({name for categories, _ in points for name in categories})
    return {
        "events_a_point": stretch,
        "phases": [phase for _, phase in points],
        "live_bytes": {name: [categories.get(name, 0) for categories, _ in points] for name in names},
    }
