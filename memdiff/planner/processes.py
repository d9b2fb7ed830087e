"""Independent calls side by side, in forks of this process: libraries are loaded already. No torch.

A fork takes over no thread of its parent, so that it is safe only where no thread of a library is at work: before torch
has computed anything, and without CUDA, which can't be used in a fork at all. `memdiff plan` is such a process, and so
is the one that `memdiff train` starts to measure in (memdiff.planner.warm_up); a rank is not.
"""

import gc
import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from memdiff.processes.cores import cores_here

T = TypeVar("T")

MOST = 4  # a fork holds a few hundred MiB of its own


def processes_here() -> int:
    """As many as this process has cores, up to a few; one where there are no forks."""
    if not hasattr(os, "fork"):
        return 1
    return min(MOST, cores_here())


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cyclic garbage meanwhile, here and in forks, where what little there is goes with the process.

    It goes through the libraries' million objects again and again while they are loaded, and a fork would copy them.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def side_by_side(
    call: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    processes: int,
    *,
    lanes: Sequence[Hashable] | None = None,
    done: Callable[[], None],
) -> list[T]:
    """`call(*task)` of each, in order, at most `processes` at a time; `done` is told of each.

    Tasks of the same lane (one a task) go to the same process as far as none would have to wait for it: what one of
    them keeps in that process's memory serves the next. What one raises is raised here. `call` is a module's own
    function.
    """
    if processes <= 1 or len(tasks) <= 1:
        results = []
        for task in tasks:
            results.append(call(*task))
            done()
        return results
    context = multiprocessing.get_context("fork")
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(min(processes, len(tasks)))]
    try:
        return _distributed(call, tasks, list(lanes or range(len(tasks))), pools, done)
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


def _distributed(
    call: Callable[..., T], tasks: Sequence[tuple[Any, ...]], lanes: list[Hashable],
    pools: Sequence[ProcessPoolExecutor], done: Callable[[], None],
) -> list[T]:  # fmt: skip
    """One task at a time to each pool of one process."""
    left, working, answers = list(range(len(tasks))), {}, {}
    last: dict[int, Hashable] = {}  # lane of each pool

    def begin(pool: int) -> None:
        if left:
            number = next_of(left, lanes, last, pool)
            left.remove(number)
            last[pool] = lanes[number]
            working[pools[pool].submit(call, *tasks[number])] = (pool, number)

    for pool in range(len(pools)):
        begin(pool)
    while working:
        for future in wait(working, timeout=0.5, return_when=FIRST_COMPLETED).done:
            pool, number = working.pop(future)
            answers[number] = future.result()
            begin(pool)
            done()
    return [answers[number] for number in range(len(tasks))]


def next_of(left: Sequence[int], lanes: Sequence[Hashable], last: dict[int, Hashable], pool: int) -> int:
    """The first task that is left of the pool's own lane, else of one that no pool is in, else of the fullest."""
    own = [number for number in left if pool in last and lanes[number] == last[pool]]
    free = [number for number in left if lanes[number] not in last.values()]
    fullest = max(left, key=lambda number: sum(lanes[other] == lanes[number] for other in left))
    return next(iter(own or free), fullest)
