"""Micro-batches of one shape, and their retry in halves where memory runs out. The smaller size is kept.

    for batch in micro_batches(items, size):
        batch.run(work, *arguments)             # work(rows, count, *arguments)

The same rows go through the same code with the same noise, so that the gradient is the one that would have been. `work`
is a function of its own because a failed call's frames hold its graph: they must be gone before the retry.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from memdiff.errors import OutOfMemoryError
from memdiff.runtime import incidents
from memdiff.runtime.fixed_batches import fixed_batches
from memdiff.runtime.gradients import Sums

Item = TypeVar("Item")


class PieceSize:
    """Rows of a piece: what the knobs say, less where memory was found short."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.halved = 0  # times, since the start

    def halve(self) -> None:
        """Raises OutOfMemoryError where one row at a time is too much already."""
        if self.rows == 1:
            raise OutOfMemoryError("one image at a time does not fit into the GPU's memory")
        self.rows = -(-self.rows // 2)
        self.halved += 1
        incidents.counts[incidents.HALVED] += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the failed piece's blocks are of sizes that the next one does not use


@dataclass
class MicroBatch(Generic[Item]):
    """`rows` of one shape, of which the first `count` are valid: the rest only fills them up."""

    rows: list[Item]
    count: int
    done: bool = False

    def run(self, work: Callable[..., None], *arguments: Any, undo: Sequence[Sums] = ()) -> None:
        """`work(rows, count, *arguments)`. Where memory runs out, what it had added to `undo` is taken back."""
        before: list[Sequence[torch.Tensor]] = []
        self.done = fits(self._with_copies, before, undo, work, arguments)
        if not self.done and len(before) == len(undo):  # fewer: memory ran out for the copies, nothing was added
            for sums, copy in zip(undo, before, strict=True):
                sums.restore(copy)

    def _with_copies(
        self,
        before: list[Sequence[torch.Tensor]],
        undo: Sequence[Sums],
        work: Callable[..., None],
        arguments: Sequence[Any],
    ) -> None:
        if len(self.rows) > 1:  # one row can't be halved, so that nothing is redone after it
            before.extend(sums.copied() for sums in undo)
        work(self.rows, self.count, *arguments)


def micro_batches(items: Sequence[Item], size: PieceSize) -> Iterator[MicroBatch[Item]]:
    """Batches of `size.rows` over all items, each to be run; after one that failed, halves of it and all that follow.

    Raises OutOfMemoryError where one row at a time is too much.
    """
    waiting = list(items)
    while waiting:
        batch = MicroBatch(*next(fixed_batches(waiting, size.rows)))
        yield batch
        if batch.done:
            waiting = waiting[batch.count :]
        else:
            size.halve()


def fits(work: Callable[..., None], *arguments: Any) -> bool:
    """`work(*arguments)`. False where memory ran out; the failed call's frames are gone by then."""
    try:
        work(*arguments)
    except torch.OutOfMemoryError:
        return False
    return True
