"""The share of an update in which the device does nothing, from the profiler's intervals. No Python stacks.

The intervals are read as the profiler's own records: its tree of events took minutes to build for a few updates.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Interval = tuple[int, int]  # begin and end, ns


def busy_ns(intervals: Iterable[Interval]) -> int:
    """Of the union: what runs side by side counts once."""
    total, end = 0, None
    for begin, stop in sorted(intervals):
        if end is None or begin > end:
            total, end = total + stop - begin, stop
        elif stop > end:
            total, end = total + stop - end, stop
    return total


def idle_share(intervals: Iterable[Interval]) -> float | None:
    """1 - busy / whole, from the first interval's begin to the last one's end; None without any."""
    some = list(intervals)
    if not some:
        return None
    whole = max(stop for _, stop in some) - min(begin for begin, _ in some)
    return 1 - busy_ns(some) / whole if whole else 0.0


def profiled(run: Callable[[], Any], device: torch.device, trace: Path | None = None) -> dict[str, Any]:
    """`idle_share` and `kernels` of one run; the trace, for a browser, where a file is named.

    On a CPU its operators stand for kernels, so that a dry run goes the same way: the share is that of Python between
    them.
    """
    on_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    # acc_events: torch 2.11 warns of cycles, of which there is one.
    with profile(
        activities=[activity], record_shapes=False, with_stack=False, profile_memory=False, acc_events=True
    ) as seen:
        run()
        if on_cuda:
            torch.cuda.synchronize(device)
    results: Any = seen.profiler
    kind = torch.autograd.DeviceType.CUDA if on_cuda else torch.autograd.DeviceType.CPU  # pyright: ignore
    intervals = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in results.kineto_results.events()
        if event.device_type() == kind and event.duration_ns() > 0
    ]
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        seen.export_chrome_trace(str(trace))
    return {"idle_share": idle_share(intervals), "kernels": len(intervals)}
