"""The long ones: other methods, and kills at random moments, with memory, descriptors and goodput measured."""

import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memdiff.processes.identity import PROC, kill
from tests.faults.results import Result, attempt
from tests.faults.runs import Run, fingerprint, last_round, train, trained, write_recipe
from tests.faults.trials import POINTS, kills_at_points

MIB = 2**20
ROUNDS, SECONDS = 120, 1800.0
MOST_ROUNDS_ON = 4  # between two kills: a kill every 20 to 30 s, so that most fall into a start, a round or a save
WARM = 10  # rounds after which memory has to be flat


def other_methods(folder: Path) -> Iterator[Result]:
    """R1 for the methods that differentiate the reward, and for the one that has no reward."""
    for method in ("draft", "alignprop", "sft_pg"):
        place = folder / method
        place.mkdir()
        points = tuple(point for point in POINTS if point != "reward") if method == "sft_pg" else POINTS
        yield from kills_at_points(place, points, method=method)


class Sampled:
    """Resident memory and descriptors of both ranks at each new round of a run, while it goes on."""

    def __init__(self, run: Run, out: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self._run, self._out = run, out
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        seen = -1
        while self._run.process.poll() is None:
            number = last_round(self._out)
            pids = [self._run.rank(rank) for rank in (0, 1)]
            if number > seen and None not in pids:
                try:
                    self.rows.append({
                        "round": number,
                        "seconds": time.monotonic(),
                        "rss_mib": [_resident(pid) / MIB for pid in pids if pid],
                        "descriptors": [len(os.listdir(PROC / str(pid) / "fd")) for pid in pids if pid],  # noqa: PTH208
                    })  # fmt: skip
                    seen = number
                except OSError:
                    continue
            time.sleep(0.1)

    def figures(self) -> dict[str, Any]:
        """Rank 0's and rank 1's: MiB and descriptors early and late, MiB a round between, seconds a round."""
        self._thread.join(10)
        rows = [row for row in self.rows if row["round"] >= WARM]
        if len(rows) < 4:
            return {}
        quarter = max(1, len(rows) // 4)
        early, late = rows[:quarter], rows[-quarter:]
        rounds = statistics.mean(r["round"] for r in late) - statistics.mean(r["round"] for r in early)
        growth = [_mean(late, "rss_mib", rank) - _mean(early, "rss_mib", rank) for rank in (0, 1)]
        return {
            "rounds": rows[-1]["round"],
            "rss_mib": [[round(_mean(some, "rss_mib", rank)) for some in (early, late)] for rank in (0, 1)],
            "rss_mib_a_round": [round(grown / rounds, 3) for grown in growth],
            # the fewest: a file that is being written just then is none that stays open
            "descriptors": [[min(r["descriptors"][rank] for r in some) for some in (early, late)] for rank in (0, 1)],
            "seconds_a_round": round((rows[-1]["seconds"] - rows[0]["seconds"]) / (len(rows) - 1), 2),
        }


def random_kills(folder: Path, rounds: int = ROUNDS, seconds: float = SECONDS) -> Iterator[Result]:
    """R1 and R24: kill -9 of everything at random moments, from a fixed seed; in the end as a run left alone."""
    draw = random.Random(0)
    recipe = write_recipe(folder / "random.yaml", run={"rounds": rounds})
    alone, out = folder / "alone", folder / "killed"
    run = train(recipe, alone)
    sampled = Sampled(run, alone)
    code = run.end(3600)
    run.clear()
    figures = sampled.figures()
    flat = bool(figures) and all(a == b for a, b in figures["descriptors"]) and max(figures["rss_mib_a_round"]) < 0.5
    failure = None if code == 0 and flat else f"exit code {code}, {figures}, {run.said()[-500:]}"
    yield Result("R24", f"memory and descriptors over {rounds} rounds", 0.0, failure, figures=figures)
    begun, kills = time.monotonic(), 0
    while last_round(out) < rounds - 2 and time.monotonic() - begun < seconds:
        run = train(recipe, out)
        _wait(run, out, draw, rounds - 2)
        kills += 1
        killed = run.alive()
        kill(killed)
        what = f"kill -9 of all {len(killed)} processes, number {kills}, after round {max(0, last_round(out))}"
        yield attempt("R24", what, run, lambda run=run: float(_none_left(run)))
    run = train(recipe, out)

    def to_the_end() -> float:
        assert run.end(3600) == 0, run.said()[-1500:]
        assert fingerprint(out) == fingerprint(alone), "weights, optimizer state or rows differ from the run left alone"
        return 0.0

    result = attempt("R1", f"bitwise after {kills} kills at random moments", run, to_the_end)
    wall = time.monotonic() - begun
    useful = rounds * figures.get("seconds_a_round", 0.0)
    yield Result(
        "R1", result.what, 0.0, result.failure,
        figures={"kills": kills, "wall_seconds": round(wall), "goodput": round(useful / wall, 3)},
    )  # fmt: skip


def _wait(run: Run, out: Path, draw: random.Random, most: int) -> None:
    """Until a random moment: one time in three while it starts, else some rounds on."""
    before = last_round(out)
    if draw.random() < 1 / 3:
        deadline = time.monotonic() + draw.uniform(0.5, 40)
        while time.monotonic() < deadline and run.process.poll() is None:
            time.sleep(0.05)
        return
    run.until(trained(out, min(most, before + draw.randint(1, MOST_ROUNDS_ON))))
    time.sleep(draw.uniform(0, 2))


def _none_left(run: Run) -> int:
    assert run.orphans() == [], "processes live on"
    return 0


def _mean(rows: list[dict[str, Any]], key: str, rank: int) -> float:
    return statistics.mean(row[key][rank] for row in rows)


def _resident(pid: int) -> int:
    return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
