"""Batches of one shape, whatever the number of items."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def fixed_batches(items: Sequence[Item], size: int) -> Iterator[tuple[list[Item], int]]:
    """Batches of exactly `size` items, the last filled up with its own first item, and how many of each are valid.

    One shape for every batch: kernels differ by shape, so a result would else depend on its neighbours' number.
    """
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        yield batch + [batch[0]] * (size - len(batch)), len(batch)
