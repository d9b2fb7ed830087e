"""The most bytes that lived at once, and what they were. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from memdiff.runtime.memory_tags import MemoryTag


@dataclass(frozen=True)
class Peak:
    """The most bytes that lived at once, what they were, and which module was at work."""

    bytes: int = 0
    categories: Mapping[MemoryTag, int] = field(default_factory=dict)
    module: str = ""
