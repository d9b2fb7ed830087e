"""Batches without a graph that are made again in halves where memory runs out: rollouts, decoded images, rewards.

Pieces, which have a graph and sums to put back, are `memdiff.methods.micro_batches`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from memdiff.errors import OutOfMemoryError
from memdiff.runtime import incidents
from memdiff.runtime.fixed_batches import fixed_batches

Item = TypeVar("Item")
Result = TypeVar("Result")

# The most rows that an owner had memory for, once it had too little: it does not fail at every call again.
_most_rows: "WeakKeyDictionary[object, dict[str, int]]" = WeakKeyDictionary()


def batches_that_fit(
    owner: object, what: str, items: Sequence[Item], size: int, work: Callable[[list[Item], int], Result]
) -> Iterator[Result]:
    """`work(batch, count)` for batches of `size` items, filled up to one shape, of which the first `count` are valid.

    Where memory runs out in it, that batch and all later ones are halved, for `owner` and `what` from then on. The
    same items go through the same code, so that the results are those of smaller batches. Raises OutOfMemoryError
    where one item is too much.
    """
    most = _most_rows.setdefault(owner, {})
    waiting = list(items)
    while waiting:
        rows = min(size, most.get(what, size))
        batch, count = next(fixed_batches(waiting, rows))
        results = _tried(work, batch, count)
        if results:
            yield results[0]
            waiting = waiting[count:]
            continue
        if rows == 1:
            raise OutOfMemoryError(f"{what}: one image at a time does not fit into the GPU's memory")
        most[what] = -(-rows // 2)
        incidents.counts[incidents.HALVED] += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the failed batch's blocks are of sizes that the next one does not use


def _tried(work: Callable[[list[Item], int], Result], batch: list[Item], count: int) -> list[Result]:
    """Empty where memory ran out; the failed call's frames, which hold its tensors, are gone by then."""
    try:
        return [work(batch, count)]
    except torch.OutOfMemoryError:
        return []
