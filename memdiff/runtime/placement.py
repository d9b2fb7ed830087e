"""The one function that moves things between a device and the host.

Everything that leaves or enters a GPU goes through `place`, so that a plan on fake tensors (whose `.to("cpu")` is
invisible) can see the moves, and so that the rules of asynchronous copies stand in one place.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor

T = TypeVar("T", torch.Tensor, torch.nn.Module)

HOST = torch.device("cpu")


def place(thing: T, device: torch.device) -> T:
    """`thing` on `device`: modules are moved in place, tensors are copied if they are elsewhere.

    A tensor's copy to a CUDA device is not waited for: torch keeps a pinned block alive until its copy is done, and the
    driver has taken pageable memory into buffers of its own when it returns (for which it may wait where that is more
    than some 64 KiB: `upload`). To the host it is waited for: a target that is read too early holds garbage.
    """
    if isinstance(thing, torch.nn.Module):
        return thing.to(device)
    return thing.to(device, non_blocking=device != HOST)


def cast_and_place(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """The module in `dtype` on `device`, tensor by tensor: the host never holds a second copy of the whole."""
    module._apply(lambda tensor: place(tensor.to(dtype) if tensor.is_floating_point() else tensor, device))


def put_in_place(parameter: torch.Tensor, data: torch.Tensor) -> None:
    """`parameter.data = data`, wherever `data` lies: the parameter stays the same object."""
    parameter.data = data
    if isinstance(parameter, FakeTensor) and isinstance(data, FakeTensor):
        parameter.fake_device = data.fake_device  # which the assignment leaves as it was


def host_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros in host memory, pinned where `device` is a CUDA device so that copies to and from it overlap with work."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


def upload(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rows gathered or drawn in host memory, on `device`, without waiting for the copy however large they are."""
    return place(rows.pin_memory() if device.type == "cuda" else rows, device)


def numbers_on(
    device: torch.device, numbers: Sequence[float | bool], *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Python's numbers as a tensor on `device`, without waiting: an index that is a list is copied there, and waits."""
    return place(torch.tensor(numbers, dtype=dtype), device)


def download(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copies into a host buffer without waiting where it is pinned; `settle` before the host reads it."""
    target.copy_(source, non_blocking=True)


def settle(device: torch.device) -> None:
    """Waits until every `download` from `device` has arrived."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
