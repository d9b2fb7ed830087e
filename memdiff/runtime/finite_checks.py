"""Whether numbers are finite: asked at once, or noted on the device and asked once for many pieces.

    with noted(device) as notes:        # inside, `all_finite` says yes to what lies on `device`, and notes the answer
        ...
    notes.good()                        # the one wait: whether it was yes every time

To ask, the host waits until the device has done all that it was told, and what it tells it next finds it idle.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

AllFinite = Callable[[Sequence[torch.Tensor]], bool]


class Notes:
    """What was noted on a device, and how many gradients were added before the first that is not finite."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flag = torch.ones((), dtype=torch.bool, device=device)
        self._added = torch.zeros((), dtype=torch.int32, device=device)

    def take(self, finite: torch.Tensor) -> None:
        """One more answer, a bool on the device."""
        self.flag.logical_and_(finite)

    def count_added(self) -> None:
        """One more piece has been added to the sums, if the flag was still up."""
        self._added.add_(self.flag)

    def good(self) -> bool:
        """Whether every answer was yes. Waits for the device."""
        return bool(self.flag)

    @property
    def added(self) -> int:
        """Pieces that were added before the first bad answer. Waits for the device."""
        return int(self._added)


_notes: ContextVar[Notes | None] = ContextVar("finite_notes", default=None)


@contextmanager
def noted(device: torch.device) -> Iterator[Notes]:
    """Inside, `all_finite` does not wait for `device`."""
    notes = Notes(device)
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def notes_here() -> Notes | None:
    """Those of the innermost `noted`; None where answers are waited for."""
    return _notes.get()


def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether no element is infinite or NaN. Waits for the device, but inside `noted`."""
    if not tensors:
        return True
    largest = torch._foreach_norm(list(tensors), ord=math.inf)
    finite = torch.stack([norm.float() for norm in largest]).isfinite().all()
    notes = _notes.get()
    if notes is None or finite.device != notes.device:
        return bool(finite)
    notes.take(finite)
    return True
