"""trackio: a local dashboard (`trackio show`), or a Space of the hub. No torch.

TRACKIO_PROJECT, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL and TRACKIO_DIR say where.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memdiff.loggers.logger import LoggedRun

PROJECT = "memdiff"


class Trackio:
    """Fulfils memdiff.loggers.logger.Logger. Runs are known by name there: the folder's and the run's key."""

    def __init__(self, run: LoggedRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio: Any = trackio
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{run.key}",
            resume="allow",
            config=dict(run.recipe),
            embed=False,
        )

    def scalars(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """Its step is the round."""
        self._run.log(dict(numbers), step=round_number)

    def image(self, round_number: int, png: Path) -> None:
        """In the same step as the round's numbers."""
        self._run.log({"samples": self._trackio.Image(str(png))}, step=round_number)

    def close(self, exit_code: int) -> None:
        """Sends what is left, for half a minute at most."""
        del exit_code
        self._run.finish()
