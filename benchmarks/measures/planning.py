"""What `memdiff plan` says of a recipe on a card: simulated, no GPU. The recipe's changes are laid over its file."""

from collections.abc import Mapping
from typing import Any

from benchmarks.case import overlaid
from benchmarks.provenance import ROOT
from memdiff.memory.gpus import find_gpu
from memdiff.planner.plan import make_plan
from memdiff.planner.round_cache import RoundCache, users_cache
from memdiff.planner.rounds import Measuring
from memdiff.recipe.reading import check_recipe, read_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.units import GIB

KEPT = (
    "fits", "budget_bytes", "peak_bytes", "peak_phase", "items", "phases", "knobs", "flops", "flops_ideal",
    "smallest_budget_bytes", "host_bytes", "host_load_bytes", "host_total_bytes", "moved_seconds",
    "round_seconds", "hours", "notes",
)  # fmt: skip


def changed_recipe(settings: Mapping[str, Any]) -> Recipe:
    """`recipe_file` with `changes` laid over it."""
    file = ROOT / settings["recipe_file"]
    raw = read_recipe(file).model_dump(mode="json")
    return check_recipe(overlaid(raw, settings["changes"]), source=file.name, folder=file.parent)


def measure_plan(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plan on `gpu`, or for `budget_gib`, with `ranks` GPUs."""
    recipe, ranks = changed_recipe(settings), settings["ranks"]
    gpu = find_gpu(settings["gpu"] or "t4")
    budget_in_gib = settings["budget_gib"]
    budget = gpu.budget_bytes(ranks) if budget_in_gib is None else int(budget_in_gib * GIB)
    measuring = Measuring(cache=RoundCache(recipe, users_cache()))  # rows of a recipe share rounds
    plan = make_plan(
        recipe, budget_bytes=budget, ranks=ranks, gpu=gpu, precision=settings["precision"], measuring=measuring
    ).to_json()
    return {key: plan[key] for key in KEPT}
