"""How far planning is, on stderr: a bar on a terminal, two lines elsewhere. No torch.

No thread draws the bar, since rounds are measured in forks, which would find its locks taken.
"""

import sys
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from memdiff.runtime.screen import screen


class PlanningProgress:
    """From the first second: while libraries load, while rounds are measured; nothing where all are cached.

    `bar=False`: lines on a terminal too, where something else draws a bar.
    """

    def __init__(self, recipe: str, *, bar: bool = True) -> None:
        console = screen(stderr=True)
        self._recipe, self._lines, self._said = recipe, not (bar and console.is_terminal), False
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
            console=console, auto_refresh=False, transient=True, disable=self._lines,
        )  # fmt: skip
        self._task = self._bar.add_task(f"planning {recipe}", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        self._bar.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """So many rounds of `total` are measured."""
        self._bar.update(self._task, description=f"measuring {total} short rounds", completed=done, total=total)
        self._bar.refresh()
        if self._lines and not self._said and done < total:
            self._said = True
            sys.stderr.write(
                f"memdiff: planning {self._recipe}: measuring {total - done} short rounds without data, a few seconds "
                "each; they are cached for the next time\n"
            )
            sys.stderr.flush()
