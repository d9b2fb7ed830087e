"""Live bytes of running code, counted storage by storage.

A storage counts from the operator that first shows it until nothing refers to it any more. Views share a storage and
count once; what autograd keeps for the backward keeps its storage alive and counts. Memory that an operator takes and
gives back inside itself is not seen, nor is an allocator's rounding.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Ledger(TorchDispatchMode):
    """Inside `with Ledger() as ledger:` every storage that operators make is entered, and struck off when it dies.

    `live_bytes` are those entered and alive, `peak_bytes` their maximum. What existed before and is only read does not
    count; `enter` counts it. `device` restricts both to its type, such as cuda (None: all).
    """

    def __init__(self, *, device: torch.device | None = None) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._device = device
        self._bytes: dict[int, int] = {}  # of each live storage, by the address of its C++ object
        # weakref.finalize runs when that object dies: torch keeps a storage's Python object as long as itself.

    def enter(self, tensors: Iterable[torch.Tensor]) -> None:
        """Counts tensors that were made outside, weights for example, from here until they die."""
        for tensor in tensors:
            self._note(tensor)

    def reset_peak(self) -> None:
        """The peak from here on."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator and enters what it made."""
        kwargs = kwargs or {}
        # A view or an in-place result of a foreign tensor has that tensor's storage: it was not made here.
        foreign = {_key(t) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)} - self._bytes.keys()
        result = func(*args, **kwargs)
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in foreign:
                self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        if self._device is not None and tensor.device.type != self._device.type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        if key not in self._bytes:
            weakref.finalize(storage, self._strike, key)
            self._bytes[key] = 0
        self.live_bytes += size - self._bytes[key]  # a storage may be resized in place
        self._bytes[key] = size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _strike(self, key: int) -> None:
        self.live_bytes -= self._bytes.pop(key)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
