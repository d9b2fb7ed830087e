"""One recipe in a process of its own: its plan, then two rounds on this machine's device.

    python -m memdiff.bench.one_recipe RECIPE CHANGES_AS_JSON RESULT_FILE

The second round is measured. On a GPU bytes are those of torch's allocator. On a CPU, which has none, a third round
counts live tensors storage by storage, and the plan is one for a GPU with the same settings.
"""

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path

import torch

from memdiff.bench.blank_networks import blank_parts
from memdiff.bench.block import RecipeRow
from memdiff.engine.process_group import start_process_group
from memdiff.errors import ConfigError, OutOfMemoryError
from memdiff.methods.experience import Clock
from memdiff.models.precision import resolve_precision
from memdiff.planner.for_run import plan_of_run
from memdiff.planner.ledger import Ledger
from memdiff.planner.plan import Plan, make_plan
from memdiff.planner.round_cache import RoundCache, users_cache
from memdiff.planner.rounds import Measuring
from memdiff.recipe.reading import check_recipe, laid_over, read_recipe_data
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.exit_codes import guarded
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.runtime.units import GIB
from memdiff.training.build import Parts, build_parts
from memdiff.training.loop import new_round
from memdiff.training.progress import RunProgress

EMBEDDED, REAL, RANDOM = "embedded", "real", "random"
CPU_BUDGET_BYTES = 64 * GIB  # settings are fixed there, so that a budget decides nothing


def measure(name: str, changes: dict[str, object]) -> RecipeRow:
    """Plans and runs. Raises OutOfMemoryError where the plan does not fit, before anything is loaded."""
    raw, file = read_recipe_data(Path(name))
    recipe = check_recipe(laid_over(raw, changes), source=file.name, folder=file.resolve().parent)
    ranks = ranks_of_this_process()
    start_process_group(ranks)
    plan = plan_of(recipe, ranks)
    if not plan.fits:
        raise OutOfMemoryError(f"planned, and does not fit: {plan.of_budget()}")
    parts, weights = loaded(recipe, ranks, plan)
    seconds, live, reserved = two_rounds(parts)
    known_pace = plan.gpu is not None and ranks.device.type == "cuda"
    return RecipeRow(
        recipe=name,
        weights=weights,
        images=recipe.run.images_per_round,
        steps=recipe.sampler.steps,
        precision=plan.precision,
        planned_live=plan.live_bytes,
        planned_peak=plan.peak_bytes,
        measured_live=live,
        measured_reserved=reserved,
        estimated_seconds=plan.round_seconds if known_pace else None,
        measured_seconds=seconds,
        knobs=parts.knobs.model_dump(),
    )


def plan_of(recipe: Recipe, ranks: Ranks) -> Plan:
    """As a run makes it for itself; on a CPU for a GPU that computes in what this one does."""
    precision = resolve_precision(recipe.model.precision, ranks.device)
    if ranks.device.type == "cuda":
        plan = plan_of_run(recipe, ranks, precision)
        if plan is None:
            raise ConfigError("this recipe can't be planned")
        return plan
    measuring = Measuring(cache=RoundCache(recipe, users_cache()))
    return make_plan(recipe, budget_bytes=CPU_BUDGET_BYTES, precision=precision, measuring=measuring)


def loaded(recipe: Recipe, ranks: Ranks, plan: Plan) -> tuple[Parts, str]:
    """With the weights that are here, or on a GPU with random ones, made there, where any is missing."""
    try:
        return build_parts(recipe, ranks), EMBEDDED if recipe.model.kind == "embedded" else REAL
    except ConfigError:
        gc.collect()
    return blank_parts(recipe, ranks, plan.chosen()), RANDOM


def two_rounds(parts: Parts) -> tuple[float, int, int | None]:
    """The second one's seconds, its live bytes and what the allocator reserved (None on a CPU)."""
    numbers, device = count(1), parts.ranks.device
    with RunProgress(rounds=2, shown=False) as progress:
        run_round(parts, next(numbers), Clock(device), progress)
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        clock = Clock(device)
        with clock.phase("all"):
            run_round(parts, next(numbers), Clock(device), progress)
        seconds = clock.read()["all"]
        if on_gpu:
            return seconds, torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        with counted(device) as ledger:
            run_round(parts, next(numbers), Clock(device), progress)
    return seconds, ledger.peak_bytes, None


def run_round(parts: Parts, number: int, clock: Clock, progress: RunProgress) -> None:
    """As the training loop runs it."""
    this_round = new_round(parts, number, clock, progress)
    experience = parts.method.collect(parts.policy, this_round)
    for part in parts.method.updates(experience):
        parts.method.differentiate(parts.policy, part)
        parts.engine.apply(parts.method.rate)


@contextmanager
def counted(device: torch.device) -> Iterator[Ledger]:
    """Every tensor that there is, and all that are made while it lasts."""
    gc.collect()
    with Ledger(device=device) as ledger:
        things = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
        ledger.enter([thing for thing in things if thing.layout == torch.strided])
        ledger.reset_peak()
        yield ledger


def main(words: list[str]) -> None:
    """Writes the row as JSON."""
    name, changes, result = words
    row = measure(name, json.loads(changes))
    Path(result).write_text(json.dumps(asdict(row)), encoding="utf-8")


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1:]))
