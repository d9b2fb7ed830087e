"""One update of memdiff's own training code, from a recipe: seconds, then bytes.

With several ranks every rank measures; seconds are the slowest rank's, bytes the largest.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import Phase, bytes_of, seconds_of
from memdiff.engine.process_group import start_process_group
from memdiff.methods.experience import Clock
from memdiff.recipe.reading import check_recipe
from memdiff.runtime.ranks import ranks_of_this_process
from memdiff.training.build import Parts, build_parts
from memdiff.training.loop import new_round
from memdiff.training.progress import RunProgress

ROOT = Path(__file__).resolve().parents[2]


class MarkingClock(Clock):
    """Gives a round's phases to whoever measures."""

    def __init__(self, device: torch.device, mark: Phase) -> None:
        super().__init__(device)
        self.mark = mark

    def phase(self, name: str) -> AbstractContextManager[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A context whose time and memory count towards the phase `name`."""
        return self.mark(name)


def measure_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`recipe` as plain data; `updates` timed after `warmup` ones."""
    ranks = ranks_of_this_process()
    start_process_group(ranks)
    parts = build_parts(
        check_recipe(settings["recipe"], source=settings["recipe"]["model"]["kind"], folder=ROOT), ranks
    )
    return measure_parts(parts, settings)


def measure_parts(parts: Parts, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A round at a time, as the training loop runs them."""
    numbers = count(1)
    ranks, images = parts.ranks, parts.recipe.run.images_per_round
    with RunProgress(rounds=1, shown=False) as progress:

        def update(mark: Phase) -> None:
            clock = MarkingClock(ranks.device, mark)
            this_round = new_round(parts, next(numbers), clock, progress)
            experience = parts.method.collect(parts.policy, this_round)
            for part in parts.method.updates(experience):
                parts.method.differentiate(parts.policy, part)
                with mark("apply"):
                    parts.engine.apply(parts.method.rate)

        figures = seconds_of(update, updates=settings["updates"], warmup=settings["warmup"], device=ranks.device)
        if ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(ranks.device)
            update(Clock(ranks.device).phase)
            figures["allocated_bytes"] = torch.cuda.max_memory_allocated(ranks.device)
            figures["reserved_bytes"] = torch.cuda.max_memory_reserved(ranks.device)
            # Each time the cap was met: cached blocks were freed and the allocation tried again.
            figures["allocator_retries"] = torch.cuda.memory_stats(ranks.device)["num_alloc_retries"]
        if settings.get("ledger", True):
            figures |= bytes_of(
                update,
                device=ranks.device,
                weights=[t for net in parts.policy.networks.values() for t in (*net.parameters(), *net.buffers())],
                reward=[
                    t for part in parts.eval_reward.parts for net in part.reward.networks for t in net.parameters()
                ],
                gradients=parts.engine.gradients.sums,
                timeline=settings.get("timeline", False),
            )
    for key in sorted(figures.keys() & {"seconds_update", "seconds_fastest", "peak_bytes"}):  # one order on all ranks
        figures[key] = type(figures[key])(
            ranks.max(torch.tensor(figures[key], dtype=torch.float64, device=ranks.device))
        )
    return figures | {
        "images_per_second": images / figures["seconds_update"],
        "knobs": vars(parts.knobs),
        "trainable_elements": sum(p.numel() for p in parts.policy.trainable().values()),
    }
