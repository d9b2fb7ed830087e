"""What a person sees while a run goes on, and when it will end: on a terminal one bar a round; in a log file or a
notebook one line a round, and one now and then within a round that is long.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from memdiff.processes import landmarks
from memdiff.runtime.exit_codes import written_out
from memdiff.runtime.from_here import from_here
from memdiff.runtime.screen import screen
from memdiff.runtime.units import duration
from memdiff.training.pace import Pace, clock_time, never

SECONDS_BETWEEN_LINES = 60.0  # where there is no bar
LONGEST_LINE = 120  # columns of a round's line, which a log file has whole


class _LeftOrEnd(TimeRemainingColumn):
    """What is left of the inner bar by rich's own estimate; of the run, whose rounds are too few and too long for that,
    its end by `Pace`."""

    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        return super().render(task) if end is None else Text(end, style="progress.remaining")


class RunProgress:
    """Rounds done, and how far the current one is. A rank that is not the first shows nothing."""

    def __init__(self, *, rounds: int, shown: bool, evaluated_after: Callable[[int], bool] = never) -> None:
        self._console = screen(quiet=not shown)
        self._rounds, self._live = rounds, shown and self._console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            _LeftOrEnd(),
            console=self._console,
            disable=not self._live,
            transient=True,
        )
        self._all = self._progress.add_task("rounds", total=rounds, end="")
        self._one = self._progress.add_task("", end=None)
        self._pace, self._end_said, self._in_round = Pace(rounds, evaluated_after), False, False
        self._now, self._last_line = time.monotonic, time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the terminal is gone: the run goes on, or is saved
            self._progress.stop()

    def begin_round(self, number: int, total: int) -> None:
        """A round of `total` image-steps, whose pace tells when the run will end."""
        self.begin(f"round {number}", total)
        self._in_round = True
        self._pace.begin(number, total)

    def begin(self, what: str, total: int) -> None:
        """A new inner bar of `total` image-steps."""
        self._in_round = False
        self._progress.reset(self._one, description=what, total=max(1, total))

    @contextmanager
    def evaluating(self, total: int) -> Iterator[None]:
        """An evaluation of `total` image-steps."""
        self.begin("evaluating", total)
        self._pace.begin_evaluation()
        yield
        self._pace.finish_evaluation()

    def advance(self, count: int) -> None:
        """So many image-steps more: a sign of life."""
        self._progress.advance(self._one, count)
        landmarks.passed()
        if self._in_round:
            self._pace.advance(count)
            if self._pace.known:
                self._progress.update(self._all, end=self._end())
                if not self._end_said:
                    self._end_said = True
                    self.say(self._estimate())
        if not self._live and self._now() - self._last_line >= SECONDS_BETWEEN_LINES:
            inner = self._progress.tasks[self._one]
            self.say(f"    {inner.description}: {inner.percentage:.0f} % of its steps")

    def done(self, round_number: int, row: Mapping[str, Any]) -> None:
        """A round's updates are made: its line, with an end that goes by what is still to come."""
        self._pace.finish()
        end = self._end() if round_number < self._rounds else ""
        self._end_said = True
        self._progress.update(self._all, completed=round_number, end=end)
        self.say_items(
            round_summary(row, [f"round {round_number:>{len(str(self._rounds))}}/{self._rounds}"], [end] if end else [])
        )

    def evaluated(self, number: int, row: Mapping[str, Any], best: bool) -> None:
        """An evaluation at a round is finished: its line."""
        after = ["(best so far)"] if best else []
        self.say_items(evaluation_summary(row, [f"evaluation at round {number}"], after))

    def _estimate(self) -> str:
        pace, left = self._pace.seconds_per_step, self._pace.seconds_left
        return f"by this round so far: {pace:.3g} s per image-step, {duration(left)} left; {self._end()}"

    def _end(self) -> str:
        return f"ends about {clock_time(self._pace.seconds_left)}"

    def say_items(self, items: Sequence[str]) -> None:
        """A line of items, on a terminal as many lines as its width asks for: a log file has one, to be searched."""
        for line in lines_of(items, self._console.width) if self._console.is_terminal else ["  ".join(items)]:
            self.say(line)

    def say(self, text: str) -> None:
        """A line above the bars, broken between words on a terminal.

        Nothing where whoever read is gone: the run goes on, or is saved.
        """
        self._last_line = self._now()
        with suppress(OSError):
            self._progress.console.print(written_out(from_here(text)), markup=False, soft_wrap=not self._live)


def lines_of(items: Sequence[str], width: int) -> list[str]:
    """Items two spaces apart, in lines of at most `width` that begin further in after the first; no item is cut."""
    lines = [items[0]]
    for item in items[1:]:
        if len(lines[-1]) + 2 + len(item) <= width:
            lines[-1] += f"  {item}"
        else:
            lines.append(f"    {item}")
    return lines


def within_a_line(before: Sequence[str], parts: Sequence[str], after: Sequence[str]) -> list[str]:
    """What stands around them, and of a reward's parts as many as a line holds; how many more metrics.jsonl has."""
    items: list[str] = []
    for count in range(len(parts), -1, -1):
        left_out = len(parts) - count
        items = [*before, *parts[:count], *([f"(+{left_out} more)"] if left_out else []), *after]
        if len("  ".join(items)) <= LONGEST_LINE:
            break
    return items


def evaluation_summary(row: Mapping[str, Any], before: Sequence[str] = (), after: Sequence[str] = ()) -> list[str]:
    """Of a row's `evaluate/` columns: the reward, each part as its share where it has one, how much images differ."""
    numbers = {key.removeprefix("evaluate/"): value for key, value in row.items() if key.startswith("evaluate/")}
    parts = {
        name: value
        for key, value in numbers.items()
        for kind, _, name in [key.partition("/")]
        if kind == "share" or (kind == "reward" and f"share/{name}" not in numbers)
    }
    differences = [f"{key} {shown(value, '.3f')}" for key, value in numbers.items() if key.startswith("diversity")]
    total = numbers.get("reward_mean")
    totals = [f"reward {shown(total, '.3f')}"] if total is not None else []
    return within_a_line([*before, *totals], _parts(parts, total), [*differences, *after])


def round_summary(row: Mapping[str, Any], before: Sequence[str] = (), after: Sequence[str] = ()) -> list[str]:
    """Of a metrics row: reward and its parts, images/s, peak memory, the gradient's norm. Seconds by phase and whatever
    a line does not hold stand in metrics.jsonl and in the report."""
    parts = {key.removeprefix("reward/"): value for key, value in row.items() if key.startswith("reward/")}
    seconds = sum(row[f"seconds_{phase}"] for phase in ("rollout", "reward", "train"))
    items = [f"{row['images_in_round'] / seconds:.2f} images/s"]
    if row["peak_bytes"] is not None:
        items.append(f"peak {row['peak_bytes'] / 2**30:.2f} GiB")
    items.append(f"grad norm {shown(row['grad_norm'], '.3g')}")
    if row["skipped"]:
        items.append("update skipped" if row["skipped"] == 1 else f"{row['skipped']} updates skipped")
    total = row["reward_mean"]
    return within_a_line([*before, f"reward {shown(total, '.3f')}"], _parts(parts, total), [*items, *after])


def _parts(parts: Mapping[str, Any], total: float | None) -> list[str]:
    """Each by its name; none where the only one is the total itself."""
    alone = len(parts) == 1 and total is not None and set(parts.values()) == {total}
    return [] if alone else [f"{name} {shown(value, '.3f')}" for name, value in parts.items()]


def shown(value: float | None, style: str) -> str:
    """A number of a metrics row, where null stands for one that is not finite."""
    return "n/a" if value is None else format(value, style)
