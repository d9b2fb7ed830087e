"""Pieces that run out of memory are redone in halves, and the new size is kept.

The same rows go through the same code with the same noise, so that the gradient is the one that would have been; what
a failed piece had added is taken back first.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from memdiff.errors import OutOfMemoryError
from memdiff.pieces import fixed_batches

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
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the failed piece's blocks are of sizes that the next one does not use


def in_pieces(
    items: Sequence[Item],
    size: PieceSize,
    work: Callable[[list[Item], int], None],
    *,
    take_back: Callable[[], None] = lambda: None,
) -> None:
    """`work(batch, count)` over all items in batches of one shape, `size.rows` long; the last is filled up.

    Where `work` runs out of memory, `take_back` undoes what it has done since it was called, and its items and all
    that follow are done in smaller batches.
    """
    waiting = list(items)
    while waiting:
        batch, count = next(fixed_batches(waiting, size.rows))
        if _fits(work, batch, count):
            waiting = waiting[count:]
        else:
            take_back()
            size.halve()


def _fits(work: Callable[[list[Item], int], None], batch: list[Item], count: int) -> bool:
    """False where memory ran out; the failed call's frames, which hold its tensors, are gone by then."""
    try:
        work(batch, count)
    except torch.OutOfMemoryError:
        return False
    return True
