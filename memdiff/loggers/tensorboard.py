"""TensorBoard's event files in the run folder: `tensorboard --logdir runs` shows all runs side by side. No torch."""

from collections.abc import Mapping
from pathlib import Path

from memdiff.loggers.event_file import EventFile
from memdiff.loggers.logger import LoggedRun
from memdiff.reporting.pictures import small_jpeg

FOLDER = "tensorboard"


class TensorBoard:
    """Fulfils memdiff.loggers.logger.Logger. A run that goes on writes one more file, which TensorBoard reads after
    the others: rounds that are made again replace those that were lost."""

    def __init__(self, run: LoggedRun) -> None:
        self._file = EventFile(run.folder / FOLDER, first_step=run.last_round + 1)
        fenced = f"```yaml\n{run.recipe_text}\n```"
        self._file.text(run.last_round + 1, "recipe", fenced)

    def scalars(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """The tags are the names of metrics.jsonl, the step is the round."""
        self._file.scalars(round_number, dict(numbers))

    def image(self, round_number: int, png: Path) -> None:
        """At most 1024 pixels a side: a grid of 64 large images would be tens of MB."""
        encoded, width, height = small_jpeg(png)
        self._file.image(round_number, "samples", encoded, width=width, height=height)

    def close(self, exit_code: int) -> None:
        """The file is whole whatever the exit code."""
        del exit_code
        self._file.close()
