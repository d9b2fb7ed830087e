"""A recipe's real architectures with random weights on this machine's GPU, its memory capped: seconds, bytes, plan.

The same objective, pieces and engine as training; only loading is left out. Random weights cost what trained ones do.
"""

import contextlib
import gc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.measures.planning import changed_recipe
from benchmarks.measures.training import measure_parts
from memdiff.bench.blank_networks import blank_parts
from memdiff.engine.process_group import start_process_group
from memdiff.errors import ConfigError, MemdiffError
from memdiff.memory.gpus import find_gpu
from memdiff.planner.plan import Plan, make_plan
from memdiff.planner.round_cache import RoundCache, users_cache
from memdiff.planner.rounds import Measuring
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.runtime.units import GIB

LARGEST_TRIED = 256
SHORT_CHAIN = 3  # steps: a peak grows with them by stored latents alone


def measure_untrained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One setting: the planner's own choice for `budget_gib` or one of `gpus` T4, capped at its plan's peak, or with
    `hard_cap` at the budget itself, whatever the plan says; with `largest` the largest micro-batch that runs. On a CPU,
    for a dry run, nothing is capped."""
    ranks = ranks_of_this_process()
    start_process_group(ranks)
    recipe = changed_recipe(settings)
    if settings["largest"]:
        rows = largest(partial(_runs, recipe, ranks), LARGEST_TRIED)
        return {"largest_micro_batch": rows, "capped_bytes": cap(settings["cap_gib"], ranks.device)}
    plan = planned(recipe, settings)
    if not plan.fits and not settings["hard_cap"]:
        raise ConfigError(f"{recipe.model.kind} does not fit: {' '.join(plan.notes)}")
    capped_bytes = cap(settings["budget_gib"] if settings["hard_cap"] else plan.peak_bytes / GIB, ranks.device)
    figures = {
        "planned_bytes": plan.peak_bytes,
        "planned_live_bytes": plan.live_bytes,
        "planned_phases": dict(plan.phases),
        "capped_bytes": capped_bytes,
    }
    return figures | measure_parts(blank_parts(recipe, ranks, plan.chosen()), settings)


def fill_round_cache(settings: Mapping[str, Any]) -> None:
    """Measures the plan's rounds while others have the card: what fails is told when this row's turn comes."""
    with contextlib.suppress(MemdiffError):
        if settings["planned"]:
            planned(changed_recipe(settings), settings)


def planned(recipe: Recipe, settings: Mapping[str, Any]) -> Plan:
    """One rank's for `budget_gib`, or what each of so many T4 has; from the round cache where it holds the rounds."""
    budget, gpu = settings["budget_gib"], find_gpu("t4")
    return make_plan(
        recipe,
        budget_bytes=gpu.budget_bytes(settings["gpus"]) if budget is None else int(budget * GIB),
        gpu=gpu,
        precision="fp16" if recipe.model.precision == "fp16" else "fp32",
        measuring=Measuring(cache=RoundCache(recipe, users_cache())),
    )


def cap(gib: float, device: torch.device) -> int:
    """Holds the allocator to `gib`; returns it in bytes. ConfigError where the card is smaller. Nothing on a CPU."""
    if device.type != "cuda":
        return int(gib * GIB)
    total = torch.cuda.mem_get_info(device)[1]
    if total < gib * GIB * 0.98:  # a T4's own drivers differ by as much
        raise ConfigError(
            f"the cap is {gib:.2f} GiB and this GPU has {total / GIB:.2f}; use one that has at least as much"
        )
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total), device)
    return int(min(gib * GIB, total))


def largest(runs: Callable[[int], bool], most: int) -> int:
    """The largest n in 1..most for which `runs(n)`, taken to be true below some n and false above; 0 if none is."""
    low, high = 0, 1
    while high <= most and runs(high):
        low, high = high, 2 * high
    high = min(high, most + 1)  # the first that is known or taken not to run
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


def _runs(recipe: Recipe, ranks: Ranks, rows: int) -> bool:
    """Whether an update with pieces of so many rows fits."""
    raw = recipe.model_copy(
        update={
            "sampler": recipe.sampler.model_copy(update={"steps": SHORT_CHAIN}),
            "memory": recipe.memory.model_copy(update={"micro_batch": rows, "rollout_batch": rows}),
            "run": recipe.run.model_copy(update={"images_per_round": rows}),
        }
    )
    try:
        measure_parts(blank_parts(raw, ranks), {"updates": 1, "warmup": 0, "ledger": False})
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    return True
