"""Trials: what is done to a run, and what must come of it. Each raises AssertionError where it does not.

A chain of strikes goes through one run folder: each is followed by the same command again, and in the end the run must
equal one that nothing happened to, bit for bit.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdiff.processes.ancestors import LAUNCH, RUNNER
from tests.faults.runs import RECIPE, Run, fingerprint, last_round, rows, status, train, write_recipe

POINTS = (
    "rollout", "reward", "train", "apply", "save.begin", "save.after_shard", "save.before_manifest",
    "save.before_rename", "save.after_rename", "retention",
)  # fmt: skip
WATCHDOG_SECONDS = 12.0


@dataclass(frozen=True)
class Result:
    """One trial: the target it counts for, what was done, seconds from the strike to the end of all processes."""

    target: str
    what: str
    seconds: float
    failure: str | None


Trial = Callable[[Path], Iterator[Result]]


def struck(run: Run, strike: Callable[[], None], code: int, words: str, seconds: float) -> float:
    """Strikes, waits, and checks exit code, one line, status and orphans. Returns the seconds it took."""
    strike()
    begun = time.monotonic()
    ended = run.end()
    orphans = run.orphans(max(0.0, 5.0))
    took = time.monotonic() - begun
    lines = [line for line in run.said().splitlines() if line.startswith("memdiff: error[")]
    assert ended == code, f"exit code {ended} in the place of {code}: {run.said()[-1500:]}"
    assert orphans == [], f"orphans: {orphans}"
    assert len(lines) == 1 and words in lines[0], f"{words!r} is not said in one line: {lines}"
    assert "Traceback" not in run.said(), run.said()[-1500:]
    assert took <= seconds, f"took {took:.1f} s of {seconds:.0f}"
    return took


def attempt(target: str, what: str, run: Run, action: Callable[[], float]) -> Result:
    """A trial's result; whatever is left of the run is killed."""
    try:
        return Result(target, what, action(), None)
    except AssertionError as error:
        return Result(target, what, 0.0, " ".join(str(error).split())[:1500])
    finally:
        run.clear()


def trained(out: Path, number: int) -> Callable[[], bool]:
    """Whether a round is done."""
    return lambda: last_round(out) >= number


def signalled(run: Run, out: Path, whom: str, number: int) -> Callable[[], None]:
    """A signal to one process of a run, or to all of them at once."""

    def send() -> None:
        match whom:
            case "memdiff":
                pids = [run.process.pid]
            case "runner":
                pids = run.with_word(RUNNER)[-1:]
            case "launch.py":
                pids = run.with_word(LAUNCH)[-1:]
            case "group":
                pids = run.alive()
            case _:
                pids = [pid for pid in [run.rank(int(whom.removeprefix("rank ")))] if pid is not None]
        assert pids, f"there is no {whom}"
        for pid in pids:
            os.kill(pid, number)

    return send


def uninterrupted(folder: Path, recipe: Path) -> dict[str, str]:
    """The fingerprint of the run that nothing happens to, made once."""
    out = folder / "whole"
    if not out.exists():
        folder.mkdir(exist_ok=True)
        run = train(recipe, out)
        code = run.end(1800)
        assert code == 0, run.said()[-2000:]
        run.clear()
    return fingerprint(out)


def kills_at_points(folder: Path, points: tuple[str, ...] = POINTS, method: str = "reinforce") -> Iterator[Result]:
    """R1, R5 and R11: kill -9 of a rank at each fault point, one after the other, then to the end."""
    recipe = write_recipe(folder / f"{method}.yaml", method={"kind": method})
    wanted = uninterrupted(folder.parent if method == RECIPE["method"]["kind"] else folder / method, recipe)
    out = folder / f"points_{method}"
    for point in points:
        rank = 1 if point.startswith(("rollout", "train", "apply")) else 0  # the first rank writes
        nth = 2 if point == "reward" else 1
        fault = f"kill:point={point},rank={rank},nth={nth}"
        run = train(recipe, out, MEMDIFF_FAULT=fault)

        def action(run: Run = run, rank: int = rank) -> float:
            while run.rank(rank) is None or run.rank(1 - rank) is None:
                assert run.process.poll() is None, run.said()[-1500:]
                time.sleep(0.1)
            pid = run.rank(rank)
            while pid in run.alive():
                time.sleep(0.05)
            return struck(run, lambda: None, 6, f"rank {rank} (pid {pid}) was killed by SIGKILL", 10.0)

        yield attempt("R5", f"kill -9 of rank {rank} at {point}", run, action)
    run = train(recipe, out)

    def to_the_end() -> float:
        assert run.end(1800) == 0, run.said()[-1500:]
        assert fingerprint(out) == wanted, "weights, optimizer state or rows differ from the run that was left alone"
        return 0.0

    result = attempt("R1", f"{method}: bitwise after the kills at {', '.join(points)}", run, to_the_end)
    yield from [result] * len(points)


def stops(folder: Path) -> Iterator[Result]:
    """R7: SIGTERM, SIGINT or SIGHUP to each process of a run in training; each time it goes on; bitwise in the end."""
    recipe = write_recipe(folder / "recipe.yaml", run={"save_every": 100})
    wanted = uninterrupted(folder.parent, recipe)  # when it saved changes nothing of what it saved last
    out = folder / "stopped"
    signals = (
        ("memdiff", signal.SIGTERM), ("runner", signal.SIGTERM), ("launch.py", signal.SIGTERM),
        ("group", signal.SIGTERM),
    )  # fmt: skip
    for whom, number in signals:
        before = last_round(out)
        run = train(recipe, out)

        def action(run: Run = run, before: int = before, whom: str = whom, number: int = number) -> float:
            run.until(trained(out, before + 1 if before >= 0 else 1))
            took = struck(run, signalled(run, out, whom, number), 75, "is saved; the same command goes on", 25.0)
            assert status(out)["state"] == "stopped"
            return took

        yield attempt("R7", f"{signal.Signals(number).name} to {whom}, in training", run, action)
    run = train(recipe, out)

    def to_the_end() -> float:
        assert run.end(1800) == 0, run.said()[-1500:]
        assert fingerprint(out) == wanted, "weights, optimizer state or rows differ from the run that was left alone"
        return 0.0

    yield attempt("R7", f"resumed bitwise after {len(signals)} stops", run, to_the_end)


def early_stops(folder: Path) -> Iterator[Result]:
    """A6 and A7: before the launcher, while ranks start, while they load."""
    recipe = write_recipe(folder / "recipe.yaml")
    moments: dict[str, Callable[[Run], object]] = {
        "as memdiff loads": lambda run: (folder / "early").is_dir(),
        "as ranks start": lambda run: run.rank(0) and run.rank(1),
        "as ranks load": lambda run: "loading the model" in run.said(),
    }
    for moment, reached in moments.items():
        whom, number = ("rank 1", signal.SIGTERM) if moment == "as ranks load" else ("memdiff", signal.SIGINT)
        shutil.rmtree(folder / "early", ignore_errors=True)
        run = train(recipe, folder / "early")

        def action(
            run: Run = run, reached: Callable[[Run], object] = reached, whom: str = whom, number: int = number
        ) -> float:
            run.until(lambda: reached(run))
            return struck(run, signalled(run, folder, whom, number), 75, "nothing had been trained", 25.0)

        yield attempt("R7", f"{signal.Signals(number).name} to {whom}, {moment}", run, action)


def frozen_and_hung(folder: Path) -> Iterator[Result]:
    """R6 and A11: a rank is stopped, a reward hangs in Python or in C: the watchdog; a stop while a reward hangs."""
    (folder / "mine.py").write_text(
        "import os, time\ncalls = 0\n"
        "def score(images, prompts):\n"
        "    global calls\n    calls += 1\n"
        "    if calls > 3 and os.environ['RANK'] == '1':\n        time.sleep(100000)\n"
        "    return images.mean(dim=(1, 2, 3))\n"
    )
    limit = {"watchdog_seconds": WATCHDOG_SECONDS, "rounds": 500}
    recipe = write_recipe(folder / "frozen.yaml", run=limit)
    out = folder / "frozen"
    run = train(recipe, out)

    def freeze() -> float:
        run.until(trained(out, 1))
        took = struck(
            run, signalled(run, out, "rank 1", signal.SIGSTOP), 6, "rank 1 made no progress for 12 s",
            WATCHDOG_SECONDS + 15,
        )  # fmt: skip
        assert "Current thread" in (out / "launcher.log").read_text(), "no stacks in the log"
        return took

    yield attempt("R6", "SIGSTOP of rank 1", run, freeze)
    out = folder / "hung"
    hung = train(recipe, out, MEMDIFF_FAULT="hang:point=train,rank=0,nth=4")

    def hang() -> float:
        hung.until(trained(out, 1))
        return struck(hung, lambda: None, 6, "rank 0 made no progress for 12 s", WATCHDOG_SECONDS + 20)

    yield attempt("R6", "rank 0 hangs in C, in a piece", hung, hang)
    recipe = write_recipe(
        folder / "reward.yaml", run=limit, reward=[{"kind": "python", "file": str(folder / "mine.py")}]
    )
    out = folder / "reward"
    slow = train(recipe, out)

    def hanging_reward() -> float:
        slow.until(trained(out, 1))
        return struck(slow, lambda: None, 6, "at: reward score", WATCHDOG_SECONDS + 25)

    yield attempt("R6", "a reward hangs on rank 1", slow, hanging_reward)
    asked = train(recipe, out)

    def stop_while_it_hangs() -> float:
        before = last_round(out)
        asked.until(trained(out, before + 1))
        time.sleep(3)
        return struck(asked, signalled(asked, out, "memdiff", signal.SIGTERM), 75, "is saved", 25.0)

    yield attempt("A11", "SIGTERM to memdiff while a reward hangs on rank 1", asked, stop_while_it_hangs)


def orphans(folder: Path) -> Iterator[Result]:
    """R8: kill -9 of memdiff, the runner or launch.py; nothing lives 5 s later, and memdiff does not say 0."""
    recipe = write_recipe(folder / "orphans.yaml", run={"rounds": 500})
    out = folder / "orphans"
    for whom in ("launch.py", "runner"):
        run, before = train(recipe, out), last_round(out)

        def action(run: Run = run, whom: str = whom, before: int = before) -> float:
            run.until(trained(out, before + 1 if before >= 0 else 1))
            return struck(run, signalled(run, out, whom, signal.SIGKILL), 6, "is gone, so rank", 10.0)

        yield attempt("R8", f"kill -9 of {whom}", run, action)


def full_disks(folder: Path) -> Iterator[Result]:
    """R9: one rank's save fails (the run goes on, warned); then every one of a stopped run's."""
    recipe = write_recipe(folder / "full.yaml", run={"rounds": 3})
    out = folder / "full"
    run = train(recipe, out, MEMDIFF_FAULT="full:point=save.begin,rank=1,nth=2")

    def goes_on() -> float:
        assert run.end(1800) == 0, run.said()[-1500:]
        warned = [line for line in run.said().splitlines() if "could not be saved by rank 1" in line]
        assert len(warned) == 1 and "MiB are free" in warned[0], run.said()[-1500:]
        assert "Traceback" not in run.said() and len(rows(out)) == 3
        return 0.0

    yield attempt("R9", "a write fails on rank 1 once", run, goes_on)
    again = train(
        write_recipe(folder / "full.yaml", run={"rounds": 9}),
        out,
        MEMDIFF_FAULT="every-full:point=save.before_manifest",
    )

    def ends() -> float:
        return struck(again, lambda: None, 5, "that is the third time in a row", 600.0)

    yield attempt("R9", "every save fails on rank 0", again, ends)
    after = train(write_recipe(folder / "full.yaml", run={"rounds": 4}), out)

    def resumes() -> float:
        assert after.end(1800) == 0 and "resuming after round 3" in after.said(), after.said()[-1500:]
        return 0.0

    yield attempt("R9", "the checkpoint before is intact", after, resumes)


TRIALS: dict[str, Trial] = {
    "points": kills_at_points,
    "stops": stops,
    "early": early_stops,
    "frozen": frozen_and_hung,
    "orphans": orphans,
    "full": full_disks,
}


def other_methods(folder: Path) -> Iterator[Result]:
    """R1 for the methods that differentiate the reward."""
    for method in ("draft", "alignprop"):
        yield from kills_at_points(folder, method=method)


def random_kills(folder: Path, kills: int = 50) -> Iterator[Result]:
    """R1 and R24: kill -9 of everything at random moments, from a fixed seed; in the end as a run left alone."""
    import random

    draw = random.Random(0)
    recipe = write_recipe(folder / "random.yaml", run={"rounds": 60})
    wanted = uninterrupted(folder / "random", recipe)
    out, done = folder / "killed", 0
    for number in range(kills):
        run = train(recipe, out)
        wait = draw.uniform(0.5, 60)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and run.process.poll() is None:
            time.sleep(0.1)

        def action(run: Run = run) -> float:
            for pid in run.alive():
                os.kill(pid, signal.SIGKILL)
            assert run.orphans() == []
            return 0.0

        yield attempt("R24", f"kill -9 of all, number {number + 1}, after {wait:.0f} s", run, action)
        done = number + 1
        if last_round(out) >= 60:
            break
    run = train(recipe, out)

    def to_the_end() -> float:
        assert run.end(3600) == 0, run.said()[-1500:]
        assert fingerprint(out) == wanted, "weights, optimizer state or rows differ from the run that was left alone"
        return 0.0

    yield attempt("R1", f"bitwise after {done} kills at random moments", run, to_the_end)


SOAK: dict[str, Trial] = {"methods": other_methods, "random": random_kills}


def outcome(results: list[Result]) -> dict[str, dict[str, Any]]:
    """By target: trials, failures, the 95 % bound of the rule of three, seconds p50 and p100."""
    table = {}
    for target in sorted({result.target for result in results}):
        own = [result for result in results if result.target == target]
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
