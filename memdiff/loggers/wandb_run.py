"""Weights & Biases, online or offline. No torch.

WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_MODE and the rest of its own variables count.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memdiff.loggers.logger import LoggedRun

PROJECT = "memdiff"
SECONDS_TO_START, SECONDS_TO_FINISH = 30.0, 60.0  # its own are 90, and none


class WeightsAndBiases:
    """Fulfils memdiff.loggers.logger.Logger. The run's key is its id there, so that a run that goes on is one run."""

    def __init__(self, run: LoggedRun) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb: Any = wandb
        # silent: it asks no question on the terminal where nobody is logged in, and says nothing between our lines.
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=SECONDS_TO_START, finish_timeout=SECONDS_TO_FINISH
        )
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=run.key,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.recipe),
            allow_val_change=True,
            settings=settings,
        )
        self._first = self._run.starting_step  # what it has already is not sent again

    def scalars(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """Its step is the round."""
        if round_number >= self._first:
            self._run.log(dict(numbers), step=round_number)

    def image(self, round_number: int, png: Path) -> None:
        """In the same step as the round's numbers."""
        if round_number >= self._first:
            self._run.log({"samples": self._wandb.Image(str(png))}, step=round_number)

    def close(self, exit_code: int) -> None:
        """Uploads what is left, for a minute at most."""
        self._run.finish(exit_code=exit_code)
