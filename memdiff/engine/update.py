"""What an engine is, and what one update did. No deepspeed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from memdiff.engine.config import OptimizerConfig
from memdiff.runtime.gradients import Gradients


@dataclass(frozen=True)
class Update:
    """What one `apply` did. `grad_norm` is the global L2 norm before clipping."""

    grad_norm: float
    loss_scale: float
    skipped: bool
    learning_rate: float


class Engine(Protocol):
    """What the trainer knows of an engine."""

    gradients: Gradients
    updates: int

    def apply(self, rate: float = 1.0) -> Update:
        """One optimizer update from the summed gradients, which are zero afterwards.

        `rate` multiplies the learning rate that the recipe gives this update.
        """
        ...

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The fp32 weights to be evaluated and saved (the average where there is one), on the host. Collective."""
        ...


def warmed_up(config: OptimizerConfig, updates: int) -> float:
    """The learning rate of the update that follows `updates` others: linear from 1 / warmup_updates, then constant."""
    return config.learning_rate * min(1.0, (updates + 1) / max(1, config.warmup_updates))


Result = TypeVar("Result")


def made_again(work: Callable[[], Result]) -> Result:
    """`work()`; where memory runs out in it, once more, with the allocator's idle blocks given back first.

    For work that changes nothing. Raises torch.OutOfMemoryError where it runs out twice.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # the failed call's frames, which hold its tensors, are gone by the next line
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return work()
