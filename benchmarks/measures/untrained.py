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
from memdiff.engine.engine import start_process_group
from memdiff.errors import ConfigError
from memdiff.memory.gpus import find_gpu
from memdiff.memory.knobs import resolved
from memdiff.models.load import skeleton_policy
from memdiff.models.precision import resolve_precision
from memdiff.planner.plan import make_plan
from memdiff.recipe.model_options import model_options
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.build import build_weighted
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.runtime.units import GIB
from memdiff.training.build import Parts, connect, knobs_for

LARGEST_TRIED = 256
SHORT_CHAIN = 3  # steps: a peak grows with them by stored latents alone


def measure_untrained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One setting, or with `largest` the largest micro-batch that runs."""
    ranks = ranks_of_this_process()
    if ranks.device.type != "cuda":
        raise ConfigError("the suite gpu needs a CUDA device, got none; the suite plan simulates one")
    capped_bytes = cap(settings["cap_gib"], ranks.device)
    start_process_group(ranks)
    recipe = changed_recipe(settings)
    if settings["largest"]:
        rows = largest(partial(_runs, recipe, ranks), LARGEST_TRIED)
        return {"largest_micro_batch": rows, "capped_bytes": capped_bytes}
    plan = make_plan(recipe, budget_bytes=capped_bytes, gpu=find_gpu("t4"), precision="fp16")
    planned = {"planned_bytes": plan.peak_bytes, "planned_phases": dict(plan.phases), "capped_bytes": capped_bytes}
    return planned | measure_parts(random_parts(recipe, ranks), settings)


def cap(gib: float, device: torch.device) -> int:
    """Holds the allocator to `gib`; returns it in bytes. ConfigError where the card is smaller."""
    total = torch.cuda.mem_get_info(device)[1]
    if total < gib * GIB * 0.98:  # a T4's own drivers differ by as much
        raise ConfigError(f"the cap is {gib} GiB and this GPU has {total / GIB:.2f}; use one that has at least as much")
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total), device)
    return int(min(gib * GIB, total))


def random_parts(recipe: Recipe, ranks: Ranks) -> Parts:
    """What memdiff.training.build gives, with random weights."""
    torch.manual_seed(recipe.run.seed)
    precision = resolve_precision(recipe.model.precision, ranks.device)
    # Made on the host, as loaded weights are: SDXL in fp32 would not fit under the cap.
    options = model_options(recipe, resolved(recipe.memory), precision=precision)
    policy = skeleton_policy(recipe.model, recipe.sampler, options, device=ranks.device)
    knobs = knobs_for(recipe.memory, policy, images=len(ranks.block(recipe.run.images_per_round)))
    device = HOST if knobs.rewards == "cpu" else ranks.device
    reward = build_weighted(recipe.reward, device=device, skeleton=True)
    held_out = WeightedReward((), device=device)
    return connect(recipe, ranks, policy, reward, held_out, knobs, None, precision)


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
        measure_parts(random_parts(raw, ranks), {"updates": 1, "warmup": 0, "ledger": False})
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    return True
