"""Headers of safetensors files, read without their tensors: what each is called, holds, and where it lies. No torch.

A header is a stranger's JSON: no more than a sane size of it is read, and what stands in it is held to the file's size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTH_BYTES = 8  # the header's length in bytes stands before it, little-endian
MOST_BYTES = 1 << 24  # over a hundred thousand tensors. safetensors reads 100 MB, which as objects may be gigabytes
METADATA = "__metadata__"  # texts of whoever wrote the file, and no tensor


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. `start` and `end` count the file's bytes from its beginning."""

    numbers: str  # F16, F32, I64, ...
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors, by their names. `size` counts the bytes before the first tensor's."""

    tensors: Mapping[str, StoredTensor]
    size: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file, in milliseconds: no tensor is read.

    Raises ValueError where the file begins with none, or with one that is no whole file's: too long, not JSON, of
    tensors that would lie beyond the file's end. Raises OSError where it can't be read.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    file_size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        size = LENGTH_BYTES + length
        if not 0 < length <= MOST_BYTES or size > file_size:
            raise ValueError(f"it is a file of {file_size} bytes, and would begin with a header of {length}")
        text = file.read(length)
    try:
        entries = json.loads(text.decode())
        tensors = {name: _stored(name, entry, size, file_size) for name, entry in entries.items() if name != METADATA}
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header makes no sense ({type(error).__name__})") from None
    return Header(tensors, size)


def kinds_of_numbers(path: Path) -> set[str]:
    """F16, F32, I64, ...: those of a file's tensors. Nothing where its header can't be read."""
    try:
        return {tensor.numbers for tensor in read_header(path).tensors.values()}
    except (OSError, ValueError):
        return set()


def _stored(name: str, entry: Mapping[str, Any], size: int, file_size: int) -> StoredTensor:
    """Raises ValueError, and whatever else an entry of another make leads to."""
    name.encode()  # half a character, which JSON can hold, is in no name
    numbers, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    counts = (*shape, begin, end)
    if not (isinstance(numbers, str) and isinstance(shape, list) and all(type(count) is int for count in counts)):
        raise ValueError("its header holds other things than tensors")
    if min(counts) < 0 or begin > end or size + end > file_size:
        raise ValueError("its header names tensors that it does not hold")
    return StoredTensor(numbers, tuple(shape), size + begin, size + end)
