"""What is kept of a run beside its rows: its time, what stands under the tiles of a grid, its loggers."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from memdiff.loggers.logger import LoggedRun
from memdiff.loggers.loggers import Loggers, key_of
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.ranks import Ranks
from memdiff.training.deadline import STARTED
from memdiff.training.evaluate import Evaluation
from memdiff.training.metrics import plain
from memdiff.training.progress import RunProgress
from memdiff.training.run_folder import RunFolder
from memdiff.training.run_state import RunState

SHOWN = 64  # images in the grid of an evaluation
MOST_SECONDS = 1e10  # three hundred years


class Stopwatch:
    """Seconds of a run from its first start on, loading, evaluations and checkpoints among them."""

    def __init__(self, before: object) -> None:
        self._before = 0.0
        if isinstance(before, int | float) and 0 <= before < MOST_SECONDS:  # the folder may come from elsewhere
            self._before = float(before)
        self._start = float(os.environ.get(STARTED, time.time()))

    def total(self) -> float:
        """Of all starts so far."""
        return self._before + time.time() - self._start


def tiles_of(result: Evaluation) -> dict[str, object]:
    """What the report says under the tiles of an evaluation's grid."""
    scores = {name: plain(list(numbers[:SHOWN])) for name, numbers in result.scores.items()}
    return {"prompts": list(result.prompts[:SHOWN]), "scores": scores}


def open_loggers(
    recipe: Recipe, folder: RunFolder, run_state: RunState, ranks: Ranks, progress: RunProgress
) -> Loggers:
    """Those that the recipe names; on ranks that are not the first none."""
    begins = run_state.round == 0
    run = LoggedRun(
        folder.path,
        recipe.model_dump(mode="json"),
        folder.recipe_text(),
        last_round=-1 if begins else run_state.round,
        key=key_of(folder.path, begins=begins) if ranks.is_first else "",
    )
    return Loggers(recipe.run.log if ranks.is_first else (), run, progress.say)


@contextmanager
def closing(loggers: Loggers) -> Iterator[None]:
    """Where the run fails, its loggers are told so, and not waited for."""
    try:
        yield
    except BaseException:
        loggers.close(1)
        raise
