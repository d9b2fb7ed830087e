"""The plan that a run makes for itself, on the GPUs it finds."""

import json
from contextlib import suppress

import torch

from memdiff.errors import ConfigError
from memdiff.memory.gpus import MARGIN_BYTES, NCCL_BYTES, Gpu, find_gpu
from memdiff.memory.host import machine_bytes
from memdiff.planner.plan import Plan, make_plan
from memdiff.planner.progress import PlanningProgress
from memdiff.planner.round_cache import RoundCache, users_cache
from memdiff.planner.rounds import Measuring
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.ranks import Ranks


def plan_of_run(recipe: Recipe, ranks: Ranks, precision: str) -> Plan | None:
    """For the fullest of the ranks' GPUs, the same on every rank.

    Called before anything is loaded: what is free then, less the margin, is what a plan may fill. Where an architecture
    is neither written down nor to be read, the rules decide as well; loading it says why it can't be.
    """
    free = torch.cuda.mem_get_info(ranks.device)[0] - (NCCL_BYTES if ranks.world_size > 1 else 0) - MARGIN_BYTES
    least = -int(ranks.max(torch.tensor(-free, device=ranks.device)))
    return shared_plan(recipe, ranks, precision, budget=least, gpu=_card(torch.cuda.get_device_name(ranks.device)))


def shared_plan(recipe: Recipe, ranks: Ranks, precision: str, *, budget: int, gpu: Gpu | None) -> Plan | None:
    """Made on the first rank and sent to the others."""
    text = None
    if ranks.is_first:
        with suppress(ConfigError), PlanningProgress("the run", bar=False) as progress:
            # in this process: it uses CUDA
            measuring = Measuring(cache=RoundCache(recipe, users_cache()), progress=progress.update)
            plan = make_plan(
                recipe,
                budget_bytes=budget,
                ranks=ranks.world_size,
                gpu=gpu,
                precision=precision,
                measuring=measuring,
                host_limit_bytes=machine_bytes(),
            )
            text = json.dumps(plan.to_json())
    shared_text = ranks.broadcast(text)
    return None if shared_text is None else Plan.from_json(json.loads(shared_text))


def _card(name: str) -> Gpu | None:
    """By the name that CUDA gives it; None where it is not known here."""
    with suppress(ConfigError):
        return find_gpu(name.replace("Tesla", "").split("-PCIE")[0].split("-SXM")[0].strip())
    return None
