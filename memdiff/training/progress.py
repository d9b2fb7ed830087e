"""What a person sees while a run goes on: one bar a round on a terminal, one line a round elsewhere."""

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from memdiff.processes import landmarks


class RunProgress:
    """Rounds done, and how far the current one is. A rank that is not the first shows nothing."""

    def __init__(self, *, rounds: int, shown: bool) -> None:
        self._console = Console(quiet=not shown, highlight=False)
        self._rounds, self._live = rounds, shown and self._console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
            transient=True,
        )
        self._all = self._progress.add_task("rounds", total=rounds)
        self._one = self._progress.add_task("")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the terminal is gone: the run goes on, or is saved
            self._progress.stop()

    def begin(self, what: str, total: int) -> None:
        """A new inner bar of `total` image-steps."""
        self._progress.reset(self._one, description=what, total=max(1, total))

    def advance(self, count: int) -> None:
        """So many image-steps more: a sign of life."""
        self._progress.advance(self._one, count)
        landmarks.passed()

    def done(self, round_number: int, row: Mapping[str, Any]) -> None:
        """A round is finished: its line."""
        self._progress.update(self._all, completed=round_number)
        self.say(f"round {round_number:>4}/{self._rounds}  {summary(row)}")

    def say(self, text: str) -> None:
        """A line above the bars. Nothing where whoever read is gone: the run goes on, or is saved."""
        with suppress(OSError):
            self._progress.console.print(text, markup=False, soft_wrap=True)


def summary(row: Mapping[str, Any]) -> str:
    """One line of a metrics row: reward and its parts, images/s, peak memory, seconds by phase."""
    parts = [f"reward {shown(row['reward_mean'], '.3f')}"]
    parts += [
        f"{key.removeprefix('reward/')} {shown(value, '.3f')}"
        for key, value in row.items()
        if key.startswith("reward/")
    ]
    seconds = {phase: row[f"seconds_{phase}"] for phase in ("rollout", "reward", "train")}
    parts.append(f"{row['images_in_round'] / sum(seconds.values()):.2f} images/s")
    parts.append("(" + ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items()) + ")")
    if row["peak_bytes"] is not None:
        parts.append(f"peak {row['peak_bytes'] / 2**30:.2f} GiB")
    parts.append(f"grad norm {shown(row['grad_norm'], '.3g')}")
    if row["skipped"]:
        parts.append("update skipped" if row["skipped"] == 1 else f"{row['skipped']} updates skipped")
    return "  ".join(parts)


def shown(value: float | None, style: str) -> str:
    """A number of a metrics row, where null stands for one that is not finite."""
    return "n/a" if value is None else format(value, style)
