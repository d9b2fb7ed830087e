"""What memory is for: a word that code may put on what it allocates, and that a ledger reads. No torch.

Outside a ledger it costs a context variable and changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

MemoryTag = Literal[
    "weights",
    "gradients",
    "optimizer",
    "method networks",
    "engine buckets",
    "trajectory",
    "activations",
    "decoder",
    "reward",
]
MEMORY_TAGS: tuple[MemoryTag, ...] = (
    "weights", "gradients", "optimizer", "method networks", "engine buckets", "trajectory", "activations", "decoder",
    "reward",
)  # fmt: skip

_category: ContextVar[MemoryTag | None] = ContextVar("category", default=None)


@contextmanager
def memory_tag(category: MemoryTag) -> Iterator[None]:
    """What is allocated inside belongs to `category`; the innermost word counts."""
    token = _category.set(category)
    try:
        yield
    finally:
        _category.reset(token)


def current_tag() -> MemoryTag | None:
    """The innermost word, None where nothing was said."""
    return _category.get()
