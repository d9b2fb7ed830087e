"""fp32 sums of parameter gradients, which pieces add into and an update takes."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from memdiff.runtime.half_precision import widen
from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import HOST, download, host_buffer, place


class Sums(Protocol):
    """What work adds to, and can be put back to what it was."""

    def copied(self) -> Sequence[torch.Tensor]:
        """As it stands, in memory that is not short."""
        ...

    def restore(self, sums: Sequence[torch.Tensor]) -> None:
        """Back to what `copied` gave, without memory for it."""
        ...


class Gradients:
    """fp32 sums (fp64 of fp64 parameters) of parameter gradients, on the parameters' device or in host memory."""

    def __init__(self, parameters: Sequence[torch.Tensor], *, on_host: bool = False, names: Sequence[str] = ()) -> None:
        self.parameters, self.names = tuple(parameters), tuple(names)
        with memory_tag("gradients"):
            self._sums = [
                torch.zeros_like(
                    p, dtype=torch.promote_types(p.dtype, torch.float32), device=HOST if on_host else p.device
                )
                for p in parameters
            ]

    def add(
        self,
        gradients: Sequence[torch.Tensor | None],
        unscale: torch.Tensor | None,
        *,
        only_if: torch.Tensor | None = None,
    ) -> None:
        """Adds one piece's gradients, one a parameter, None where it took no part; `unscale` is a scalar tensor.

        All of them: memory for a widened or unscaled copy may run out when some are added already, and a piece that is
        made again would count those twice. That gradient is then added without a copy, to the same bits.

        Where the bool scalar `only_if` is false zeros are added in the place of half precisions, without asking which
        it is. In fp32 nothing is made again: the error that follows ends the run.
        """
        dropped = None if only_if is None else only_if.logical_not()
        for total, gradient in zip(self._sums, gradients, strict=True):
            if gradient is None or _added(total, gradient, unscale, dropped):
                continue
            if dropped is None or not bool(dropped):  # memory is short: a wait is the least of it
                _add_without_a_copy(total, gradient, unscale)

    @property
    def sums(self) -> Sequence[torch.Tensor]:
        """One fp32 tensor a parameter, in the parameters' order."""
        return self._sums

    def copied(self) -> Sequence[torch.Tensor]:
        """The sums as they stand, on the host, once the device has come to them: for `restore` alone."""
        copies = [host_buffer(tuple(total.shape), total.dtype, total.device) for total in self._sums]
        for total, copy in zip(self._sums, copies, strict=True):
            download(total, copy)
        return copies

    def restore(self, sums: Sequence[torch.Tensor]) -> None:
        """Back to what `copied` gave."""
        for total, saved in zip(self._sums, sums, strict=True):
            # Not through `place`: this is called where memory has run out. It comes behind the copy out, in order.
            total.copy_(saved, non_blocking=True)

    def zero(self) -> None:
        """Forgets everything, for the next update."""
        torch._foreach_zero_(self._sums)

    def max_abs(self) -> torch.Tensor:
        """The largest |element|: a scalar."""
        return torch.stack(
            [norm.to(self._sums[0].device) for norm in torch._foreach_norm(self._sums, ord=math.inf)]
        ).max()

    @property
    def device(self) -> torch.device:
        """Of the parameters, where their gradients are made."""
        return self.parameters[0].device

    @property
    def num_bytes(self) -> int:
        """Size of the sums."""
        return sum(total.numel() * total.element_size() for total in self._sums)


def _added(
    total: torch.Tensor, gradient: torch.Tensor, unscale: torch.Tensor | None, dropped: torch.Tensor | None
) -> bool:
    """False where memory ran out: `total` is as it was, and the copies are gone."""
    try:
        full = widen(gradient)
        if dropped is not None and full is not gradient:
            full.masked_fill_(dropped, 0.0)
        total.add_(place(full if unscale is None else full * unscale, total.device))
    except torch.OutOfMemoryError:
        return False
    return True


def _add_without_a_copy(total: torch.Tensor, gradient: torch.Tensor, unscale: torch.Tensor | None) -> None:
    """Allocates nothing on a GPU. `unscale` is a power of two: its product is exact, fused with the sum or not."""
    gradient = place(gradient, total.device)
    if unscale is None:
        total.add_(gradient)
    else:
        total.addcmul_(gradient, place(unscale, total.device))
