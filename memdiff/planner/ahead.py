"""Measures a recipe's short rounds before its ranks start, so that they only choose. No torch where all are kept.

python -m memdiff.planner.ahead '{"recipe": ..., "ranks": 4}' runs in a process of its own, without CUDA: the rounds are
measured in forks, which neither CUDA nor the threads of a rank survive, and what the libraries take goes with it.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from memdiff.errors import MemdiffError
from memdiff.planner.kept_rounds import KeptRounds, users_folder
from memdiff.planner.processes import processes_here
from memdiff.planner.rank_round import planned_precision, rank_round_of
from memdiff.planner.rounds import Measuring, measure_recomputes
from memdiff.planner.telling import Telling
from memdiff.recipe.reading import check_recipe
from memdiff.recipe.recipe import Recipe


def measure_ahead(recipe: Recipe, ranks: int) -> None:
    """In a process of its own. Where it fails, or nothing is kept, the first rank measures and says what is wrong."""
    if users_folder() is None:
        return
    rank_round = json.dumps({"recipe": recipe.model_dump(mode="json"), "ranks": ranks})
    words = [sys.executable, "-m", "memdiff.planner.ahead"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(words, input=rank_round, text=True, env=environment, check=False)


def main(rank_round: str) -> None:
    """`job` is what `measure_ahead` writes."""
    read = json.loads(rank_round)
    recipe, ranks = check_recipe(read["recipe"], source="the run", folder=Path.cwd()), int(read["ranks"])
    precision = planned_precision(recipe.model.precision)
    with suppress(MemdiffError), Telling("the run") as telling:  # the first rank comes to it as well, and says it
        measuring = Measuring(processes_here(), KeptRounds(recipe, users_folder()), telling.progress)
        measure_recomputes(
            recipe, rank_round_of(recipe, ranks=ranks, precision=precision), precision, measuring=measuring
        )


if __name__ == "__main__":
    main(sys.stdin.read())
