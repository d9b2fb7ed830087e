"""The ranks of a run and the few collectives it needs, one process or many.

Shapes: n values on this rank, N values over all ranks.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from memdiff.errors import StopRequested
from memdiff.processes import landmarks
from memdiff.processes.heartbeat import WAITING
from memdiff.processes.stops import Stops


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world_size` processes. Collectives use torch.distributed's default group.

    Where ranks may leave their work together (`Stops.leaving`), each collective first asks whether any of them was
    asked to stop: then StopRequested is raised in the place of it, on all.
    """

    rank: int
    world_size: int
    device: torch.device
    stops: Stops | None = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks to people."""
        return self.rank == 0

    def block(self, count: int) -> range:
        """This rank's share of `count` things: contiguous, balanced, exactly `count` over all ranks."""
        return range(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def gather(self, values_n: torch.Tensor, count: int, *, dim: int = 0) -> torch.Tensor:
        """Every rank's block of `count` values along `dim`, in order, on every rank: n -> N.

        Blocks may differ by one in length.
        """
        if dim != 0:
            return self.gather(values_n.movedim(dim, 0).contiguous(), count).movedim(0, dim)
        if self.world_size == 1:
            return values_n
        lengths = [len(Ranks(rank, self.world_size, self.device).block(count)) for rank in range(self.world_size)]
        padded = values_n.new_zeros(max(lengths), *values_n.shape[1:])
        padded[: len(values_n)] = values_n
        blocks = [torch.empty_like(padded) for _ in lengths]
        with self._together():
            dist.all_gather(blocks, padded.contiguous())
        return torch.cat([block[:length] for block, length in zip(blocks, lengths, strict=True)])

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def any(self, condition: bool) -> bool:
        """Whether it holds on any rank; the same on all."""
        return float(self.max(torch.tensor(float(condition), device=self.device))) > 0

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks; NaN where any rank has NaN, as torch's own maximum gives."""
        if self.world_size == 1 or not values.is_floating_point():
            return self._reduce(values, dist.ReduceOp.MAX)
        # Backends compare with <, which NaN answers with no: it is dropped or kept as the ranks come. A flag is not.
        is_nan = values.isnan()
        both = torch.stack([values.masked_fill(is_nan, -math.inf), is_nan.to(values.dtype)])
        largest, flag = self._reduce(both, dist.ReduceOp.MAX)
        return largest.masked_fill(flag > 0, math.nan)

    def _reduce(self, values: torch.Tensor, op: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.world_size == 1:
            return values
        values = values.clone()
        with self._together():
            dist.all_reduce(values, op=op)
        return values

    def first_error(self, error: BaseException | None) -> tuple[int, str, str] | None:
        """What the lowest rank that failed has to say: (rank, class name, text) on every rank, or None.

        Ranks meet here after work in which one of them may fail alone, so that the others don't wait for it for ever.
        """
        mine = None if error is None else (self.rank, type(error).__name__, str(error))
        said: Sequence[tuple[int, str, str] | None] = [mine]
        if self.world_size > 1:
            said = [None] * self.world_size
            with self._together():
                dist.all_gather_object(said, mine)  # pyright: ignore[reportArgumentType]
        return next((entry for entry in said if entry is not None), None)

    def broadcast(self, text: str | None) -> str | None:
        """Rank 0's text on every rank."""
        if self.world_size == 1:
            return text
        box = [text]
        with self._together():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.world_size > 1:
            with self._together():
                dist.barrier()

    def asked_to_stop(self) -> bool:
        """Whether any rank was. Collective."""
        asked = self.stops is not None and self.stops.requested
        if self.world_size == 1:
            return asked
        with landmarks.at(WAITING):
            flag = torch.tensor(float(asked), device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return float(flag) > 0

    def stay_together(self) -> None:
        """From here on no rank leaves; or all leave here, by StopRequested. Collective where they may leave."""
        if self.stops is None or not self.stops.together:
            return
        with self.stops.staying():
            if self.asked_to_stop():
                raise StopRequested(agreed=True)
            self.stops.stay()

    def leave_together(self, request: StopRequested) -> None:
        """After StopRequested, where ranks leave together: tells those that have not left yet."""
        if not request.agreed:
            self.asked_to_stop()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around a collective, which no rank leaves halfway, or alone."""
        if self.stops is None or not self.stops.together:
            with landmarks.at(WAITING):
                yield
            return
        with self.stops.staying():
            if self.asked_to_stop():
                raise StopRequested(agreed=True)
            with landmarks.at(WAITING):
                yield


def device_of_this_process() -> torch.device:
    """The CUDA device that LOCAL_RANK names, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def ranks_of_this_process(stops: Stops | None = None) -> Ranks:
    """From the launcher's RANK and WORLD_SIZE; one rank where there is no launcher."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return Ranks(rank, world_size, device_of_this_process(), stops)
