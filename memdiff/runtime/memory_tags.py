"""What memory is for: a word that code may put on what it allocates, and that a ledger reads. No torch.

Outside a ledger it costs a context variable and changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Category = Literal[
    "weights", "gradients", "optimizer", "engine buckets", "trajectory", "activations", "decoder", "reward"
]
CATEGORIES: tuple[Category, ...] = (
    "weights", "gradients", "optimizer", "engine buckets", "trajectory", "activations", "decoder", "reward",
)  # fmt: skip

_category: ContextVar[Category | None] = ContextVar("category", default=None)


@contextmanager
def counted_as(category: Category) -> Iterator[None]:
    """What is allocated inside belongs to `category`; the innermost word counts."""
    token = _category.set(category)
    try:
        yield
    finally:
        _category.reset(token)


def current_category() -> Category | None:
    """The innermost word, None where nothing was said."""
    return _category.get()
