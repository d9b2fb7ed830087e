"""`memdiff plan`: a recipe and a card in, a table, JSON or YAML out. No torch before both are known to be right."""

import json
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.memory.gpus import Gpu, find_gpu
from memdiff.memory.host import machine_bytes
from memdiff.planner.processes import processes_here
from memdiff.planner.progress import PlanningProgress
from memdiff.planner.round_cache import RoundCache, users_cache
from memdiff.planner.rounds import Measuring
from memdiff.recipe.reading import read_recipe
from memdiff.runtime.units import GIB

DEFAULT_GPU = "t4"


def plan_recipe(
    file: Path,
    overrides: list[str],
    *,
    gpu: str | None,
    budget_gib: float | None,
    ranks: int,
    host_gib: float | None = None,
    as_json: bool = False,
    as_yaml: bool = False,
) -> str | None:
    """Shows the plan, or returns it: as JSON, or as the section `memory` of a recipe.

    Raises ConfigError, also for a card that is not known.
    """
    if gpu is not None and budget_gib is not None:
        raise ConfigError("--gpu and --budget-gib say the same thing in two ways; give one")
    if as_json and as_yaml:
        raise ConfigError("--json prints the whole plan and --yaml the section `memory` that it chose; give one")
    card: Gpu | None = None if budget_gib is not None else find_gpu(gpu or DEFAULT_GPU)
    recipe = read_recipe(file, overrides)
    recipe.check_world_size(ranks)
    budget = card.budget_bytes(ranks) if card else int((budget_gib or 0) * GIB)

    if card and recipe.model.precision == "bf16" and not card.bf16:
        raise ConfigError(f"model.precision bf16: a {card.name} has none (sm_{card.sm}); use fp16")
    host_limit = machine_bytes() if host_gib is None else int(host_gib * GIB)
    with PlanningProgress(file.name) as progress:
        from memdiff.planner.plan import make_plan

        measuring = Measuring(processes_here(), RoundCache(recipe, users_cache()), progress.update, alone=True)
        plan = make_plan(
            recipe, budget_bytes=budget, ranks=ranks, gpu=card, measuring=measuring, host_limit_bytes=host_limit
        )
    from memdiff.planner.table import show

    if as_json:
        return json.dumps(plan.to_json(), indent=2)
    if as_yaml:
        return plan.to_yaml().rstrip()
    show(plan)
    return None
