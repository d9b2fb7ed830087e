"""Independent calls side by side, in forks of this process: libraries are loaded already. No torch.

A fork takes over no thread of its parent, so that it is safe only where no thread of a library is at work: before torch
has computed anything, and without CUDA, which can't be used in a fork at all. `memdiff plan` is such a process, and so
is the one that `memdiff train` starts to measure in (memdiff.planner.warm_up); a rank is not.
"""

import gc
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

from memdiff.runtime.cores import cores_here

T = TypeVar("T")

MOST = 4  # a fork holds a few hundred MiB of its own


def processes_here() -> int:
    """As many as this process has cores, up to a few; one where there are no forks."""
    if not hasattr(os, "fork"):
        return 1
    return min(MOST, cores_here())


def side_by_side(
    call: Callable[..., T], tasks: Sequence[tuple[Any, ...]], processes: int, *, done: Callable[[], None]
) -> list[T]:
    """`call(*task)` of each, in order, at most `processes` at a time; `done` is told of each, and twice a second.

    What one raises is raised here. `call` is a module's own function.
    """
    if processes <= 1 or len(tasks) <= 1:
        results = []
        for task in tasks:
            results.append(call(*task))
            done()
        return results
    context = multiprocessing.get_context("fork")
    gc.collect()
    gc.freeze()  # or each fork's collections would go through, and copy, the libraries' million objects
    with ProcessPoolExecutor(min(processes, len(tasks)), mp_context=context) as pool:
        try:
            waiting = {pool.submit(call, *task): number for number, task in enumerate(tasks)}
            answers: dict[int, T] = {}
            while waiting:
                for future in wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    answers[waiting.pop(future)] = future.result()
                    done()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            gc.unfreeze()
    return [answers[number] for number in range(len(tasks))]
