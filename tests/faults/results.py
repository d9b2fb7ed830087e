"""What a trial comes to, and the table of all of them.

A trial fails by its outcome: exit code, words, what is left running, what is saved. Of seconds only ten times
a target fails it, since the machine may be busy; the table says what they were.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memdiff.errors import LAST_LINE
from tests.faults.runs import Run

PATIENCE = 10.0
SECONDS_FOR_ORPHANS = 5.0


@dataclass(frozen=True)
class Result:
    """One trial: the target it counts for, what was done, seconds from the strike to the end of all processes.

    `skipped` says why it was not made. `figures` are what was measured besides.
    """

    target: str
    what: str
    seconds: float
    failure: str | None
    skipped: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


Trial = Callable[[Path], Iterator[Result]]


def struck(run: Run, strike: Callable[[], None], code: int, words: str, seconds: float) -> float:
    """Strikes, waits, and checks exit code, one line and orphans. Returns the seconds it took, of `seconds` wanted."""
    strike()
    begun = time.monotonic()
    ended = run.end()
    orphans = run.orphans(PATIENCE * SECONDS_FOR_ORPHANS)
    took = time.monotonic() - begun
    lines = [line for line in run.said().splitlines() if LAST_LINE.match(line)]
    assert ended == code, f"exit code {ended} in the place of {code}: {run.said()[-1500:]}"
    assert orphans == [], f"orphans: {orphans}"
    assert len(lines) == 1 and words in lines[0], f"{words!r} is not said in one line: {lines}"
    assert "Traceback" not in run.said(), run.said()[-1500:]
    assert "[ERROR]" not in run.said(), f"DeepSpeed's launcher speaks between our lines: {run.said()[-1500:]}"
    assert took <= PATIENCE * seconds, f"took {took:.1f} s, more than {PATIENCE:g} times {seconds:.0f}"
    return took


def attempt(target: str, what: str, run: Run, action: Callable[[], float]) -> Result:
    """A trial's result; whatever is left of the run is killed."""
    try:
        return Result(target, what, action(), None)
    except AssertionError as error:
        return Result(target, what, 0.0, " ".join((str(error) or "an assertion").split())[:1500])
    finally:
        run.clear()


def outcome(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """By target: trials, failures, the 95 % bound of the rule of three, seconds p50 and p100."""
    made = [result for result in results if result.skipped is None]
    table = {}
    for target in sorted({result.target for result in made}, key=_in_order):
        own = [result for result in made if result.target == target]
        seconds = sorted(result.seconds for result in own if result.seconds and result.failure is None)
        failures = sum(result.failure is not None for result in own)
        table[target] = {
            "trials": len(own),
            "failures": failures,
            "bound_95": min(1.0, round(3 / len(own), 2)) if not failures else None,
            "seconds_p50": round(seconds[len(seconds) // 2], 1) if seconds else None,
            "seconds_p100": round(seconds[-1], 1) if seconds else None,
        }
    return table


def as_markdown(table: dict[str, dict[str, Any]]) -> list[str]:
    """The rows of docs/reliability.md's table."""
    shown = [{key: "" if value is None else value for key, value in row.items()} for row in table.values()]
    return [
        f"| {target} | {row['trials']} | {row['failures']} | {row['bound_95']} | {row['seconds_p50']} | "
        f"{row['seconds_p100']} |"
        for target, row in zip(table, shown, strict=True)
    ]


def _in_order(target: str) -> tuple[str, int]:
    return target[0], int("".join(sign for sign in target if sign.isdigit()) or 0)
