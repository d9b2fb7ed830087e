"""Fills the round cache before a recipe's ranks start, so that they only choose. No torch where it is full.

`python -m memdiff.planner.warm_up` reads a recipe and its ranks from stdin, in a process without CUDA: the rounds are
measured in forks, which neither CUDA nor the threads of a rank survive, and what the libraries take goes with it.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from memdiff.errors import MemdiffError
from memdiff.planner.processes import processes_here
from memdiff.planner.progress import PlanningProgress
from memdiff.planner.rank_round import planned_precision, rank_round_of
from memdiff.planner.round_cache import RoundCache, users_cache
from memdiff.planner.rounds import Measuring, measure_recomputes
from memdiff.recipe.reading import check_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.quiet_imports import quiet_imports


def warm_round_cache(recipe: Recipe, ranks: int) -> None:
    """In a process of its own. Where it fails, or there is no cache, the first rank measures and says what is wrong."""
    if users_cache() is None:
        return
    rank_round = json.dumps({"recipe": recipe.model_dump(mode="json"), "ranks": ranks})
    words = [sys.executable, "-m", "memdiff.planner.warm_up"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(words, input=rank_round, text=True, env=environment, check=False)


def main(rank_round: str) -> None:
    """`rank_round` is what `warm_round_cache` writes."""
    read = json.loads(rank_round)
    recipe, ranks = check_recipe(read["recipe"], source="the run", folder=Path.cwd()), int(read["ranks"])
    precision = planned_precision(recipe.model.precision)
    # What is wrong the first rank comes to as well, and says it.
    with suppress(MemdiffError), PlanningProgress("the run") as progress:
        measuring = Measuring(processes_here(), RoundCache(recipe, users_cache()), progress.update, alone=True)
        measure_recomputes(
            recipe, rank_round_of(recipe, ranks=ranks, precision=precision), precision, measuring=measuring
        )


if __name__ == "__main__":
    quiet_imports()
    main(sys.stdin.read())
