"""Host waits: operators of a round that make the host wait until the GPU has done all that it was told. Simulated.

    a number read back        `bool`, `float`, `.item()`, `.tolist()`, `nonzero`, an index that is a mask
    a copy to the host        unless it is told not to wait (`placement.download`)
    a copy to the device      unless it is told not to wait: of pageable memory torch waits for the stream behind it
    an index from the host    a list of numbers, a host tensor: a copy to the device like any other

While the host waits it queues nothing, and what it queues next starts on an idle GPU. A recipe's own round runs on fake
tensors (`memdiff.planner.fake_tensors`), as a plan does: with one and two micro-batches, of two and three steps, whose
differences say what a step, a micro-batch and a round cost. Phases of a clock that waits count too.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measures.planning import changed_recipe
from memdiff.memory.knobs import Knobs
from memdiff.memory.offload import offload_idle
from memdiff.methods.build import build_method
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.planner.dry_run import make_policy
from memdiff.planner.fake_tensors import GPU, BlankNoise, fake_gpu
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.build import build_weighted
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces

PACKAGE = Path(sys.modules["memdiff"].__path__[0])
READ_BACK = {
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}  # fmt: skip
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}
SHORT, LONGER = 2, 3  # steps


@dataclass(frozen=True)
class Waits:
    """How often the host waits, and in which lines."""

    a_step: int  # of one micro-batch
    a_micro_batch: int  # beside its steps
    a_round: int  # beside its micro-batches
    lines: Mapping[str, int]  # of the short round with one micro-batch

    def of_micro_batch(self, steps: int) -> int:
        """In a chain of so many steps."""
        return self.a_micro_batch + steps * self.a_step


class HostWaits(TorchDispatchMode):
    """Notes the line of memdiff at which each wait happens. Entered inside `fake_gpu`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._reading = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator, having noted whether the host waits for it."""
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        reads = func in READ_BACK and _on_gpu(args[0])
        # `tolist` of a vector reads number by number here, and once on a card.
        if (reads and not self._reading) or _waiting_copy(func, args, kwargs) or _indexed_from_host(func, args):
            self.note()
        self._reading = reads
        return func(*args, **kwargs)

    def note(self) -> None:
        """One wait, at the innermost line of memdiff."""
        frame = sys._getframe(1)
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(PACKAGE) and file.parent.name != "planner" and file.name != "placement.py":
                self.lines.append(f"{file.relative_to(PACKAGE)}: {frame.f_code.co_name}")
                return
            frame = frame.f_back
        self.lines.append("outside memdiff")


def _on_gpu(thing: Any) -> bool:
    return isinstance(thing, FakeTensor) and thing.fake_device == GPU


def _waiting_copy(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if func not in COPIES or kwargs.get("non_blocking", False):
        return False
    if func is torch.ops.aten.copy_.default:
        told_not_to = len(args) > 2 and args[2]
        return not told_not_to and isinstance(args[1], torch.Tensor) and _on_gpu(args[0]) != _on_gpu(args[1])
    device = kwargs.get("device")
    return device is not None and _on_gpu(args[0]) != (device == GPU)


def _indexed_from_host(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    if func not in INDEXED or not _on_gpu(args[0]):
        return False
    indices = [index for index in args[1] if index is not None]
    return any(index.dtype == torch.bool or not _on_gpu(index) for index in indices)


class _Clock(Clock):
    """Notes when it is read: there it waits."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__(GPU)
        self._waits = waits

    def read(self) -> dict[str, float]:
        """As its own, and noted."""
        self._waits.note()
        return super().read()


def count_waits(recipe: Recipe, knobs: Knobs, *, precision: str = "fp16") -> Waits:
    """Of the recipe's own method, at `knobs.micro_batch` images a micro-batch."""
    size = knobs.micro_batch
    lines = waits_of_round(recipe, knobs, steps=SHORT, images=size, precision=precision)
    longer = waits_of_round(recipe, knobs, steps=LONGER, images=size, precision=precision)
    two = waits_of_round(recipe, knobs, steps=SHORT, images=2 * size, precision=precision)
    a_step = (len(longer) - len(lines)) // (LONGER - SHORT)
    a_micro_batch = len(two) - len(lines) - SHORT * a_step
    return Waits(a_step, a_micro_batch, 2 * len(lines) - len(two), Counter(lines))


def waits_of_round(recipe: Recipe, knobs: Knobs, *, steps: int, images: int, precision: str) -> list[str]:
    """The lines that wait, of `collect`, `updates` and `differentiate` on a chain of `steps`."""
    prompts = ["a"] * images
    with fake_gpu():
        policy = make_policy(recipe, knobs, precision, steps)
        reward = build_weighted(recipe.reward, device=HOST if knobs.rewards == "cpu" else GPU, skeleton=True)
        pieces = Pieces(Gradients(list(policy.trainable().values()), on_host=knobs.accumulators == "host"))
        offload_idle(policy, reward, knobs)
        ranks = Ranks(0, 1, GPU)
        method = build_method(recipe.method.shortened(steps), reward, pieces, ranks, knobs, policy, skeleton=True)
        policy.encode(prompts)
        with _noted() as waits:
            batch = Batch(range(images), prompts, images, BlankNoise(policy.shape), prompts)
            experience = method.collect(policy, Round(batch, _Clock(waits)))
            for part in method.updates(experience):
                method.differentiate(policy, part)
    return waits.lines


@contextmanager
def _noted() -> Iterator[HostWaits]:
    waits = HostWaits()
    with waits:
        yield waits


def measure_host_waits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`recipe_file` with `changes` laid over it, every memory knob said."""
    from memdiff.memory.knobs import resolved

    recipe = changed_recipe(settings)
    waits = count_waits(recipe, resolved(recipe.memory), precision=settings["precision"])
    return {
        "waits_a_step": waits.a_step,
        "waits_a_micro_batch": waits.a_micro_batch,
        "waits_a_round": waits.a_round,
        "lines": dict(waits.lines),
    }
