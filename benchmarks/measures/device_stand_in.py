"""A device's memory that isn't there, for real tensors: what is placed on it leaves the process's anonymous memory.

`DEVICE` is cpu:0, on which no real tensor ever stands by itself. `memdiff.runtime.placement.place` is replaced: what
goes to it is read once through a small buffer, as a driver copies it, and its tensor then lies in a mapped file without
blocks: its numbers are gone, and its pages are the file's. What comes back to the host is anonymous memory again.
Pinned buffers are anonymous memory, as they would be.

What it does not show: CUDA's own host memory (its context, its libraries) and NCCL's.
"""

import tempfile
from functools import cache
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor

from memdiff.runtime import placement

DEVICE = torch.device("cpu", 0)
STAGED = 2**20  # elements read at a time

_place = placement.place
_files = tempfile.TemporaryDirectory(prefix="device_")
_on_device: set[int] = set()  # addresses of storages


def stand_in() -> None:
    """From now on, for modules that are imported later: they bind `place` by name."""
    placement.place = place  # pyright: ignore[reportAttributeAccessIssue]


def place(thing: placement.T, device: torch.device) -> placement.T:
    """As memdiff.runtime.placement.place, with `DEVICE` a place of its own. Fake tensors, a plan's, go as ever."""
    if _is_fake(thing):
        return _place(thing, device)
    if isinstance(thing, torch.nn.Module):
        for parameter in (*thing.parameters(), *thing.buffers()):
            parameter.data = place(parameter.data, device)
        return thing
    if device == DEVICE and not is_there(thing):
        return _moved(thing)
    if device != DEVICE and is_there(thing):
        return thing.detach().clone()
    return _place(thing, torch.device(device.type))


def is_there(tensor: torch.Tensor) -> bool:
    """Whether its storage lies on the stand-in."""
    return tensor.untyped_storage().data_ptr() in _on_device


def _is_fake(thing: torch.Tensor | torch.nn.Module) -> bool:
    """Without numbers, as a plan makes them, so that there is no storage to look at."""
    if isinstance(thing, torch.nn.Module):
        return any(isinstance(tensor, FakeTensor) for tensor in (*thing.parameters(), *thing.buffers()))
    return isinstance(thing, FakeTensor)


@cache
def _buffer(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(STAGED, dtype=dtype)


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.numel():
        return tensor
    size = tensor.numel() * tensor.element_size()
    file = Path(_files.name) / "storage"
    with file.open("wb") as handle:
        handle.truncate(size)
    storage = torch.UntypedStorage.from_file(str(file), shared=True, nbytes=size)
    file.unlink()
    there = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.contiguous().stride())  # pyright: ignore
    _on_device.add(storage.data_ptr())
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().contiguous().reshape(-1)
    for start in range(0, flat.numel(), STAGED):
        part = flat[start : start + STAGED]
        _buffer(part.dtype)[: len(part)].copy_(part)
    return there
