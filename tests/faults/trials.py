"""Trials on one host: what is done to a run, and what must come of it.

A chain of strikes goes through one run folder: each is followed by the same command again, and in the end the run must
equal one that nothing happened to, bit for bit.
"""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.results import PATIENCE, SECONDS_FOR_ORPHANS, Result, attempt, struck
from tests.faults.runs import (
    OF_METHOD,
    Run,
    complete_with_one_warning,
    last_round,
    rows,
    signalled,
    status,
    to_the_end,
    train,
    trained,
    write_recipe,
)

POINTS = (
    "rollout", "reward", "train", "apply", "save.begin", "save.after_shard", "save.before_manifest",
    "save.before_rename", "save.after_rename", "retention",
)  # fmt: skip
WATCHDOG_SECONDS = 20.0  # far more than a save of the small model takes on a busy machine
NO_PROGRESS = f"made no progress for {WATCHDOG_SECONDS:g} s"


def kills_before_the_update(folder: Path) -> Iterator[Result]:
    """In the rollout, the reward, a piece, the update."""
    yield from kills_at_points(folder, POINTS[:4])


def kills_in_a_save(folder: Path) -> Iterator[Result]:
    """At six moments of a checkpoint."""
    yield from kills_at_points(folder, POINTS[4:])


def kills_at_points(folder: Path, points: tuple[str, ...], method: str = "reinforce") -> Iterator[Result]:
    """R1, R5 and R11: kill -9 of a rank at each fault point, one after the other, then to the end."""
    sections = OF_METHOD.get(method, {})
    changes = sections | {"method": sections.get("method", {}) | {"kind": method}}
    recipe = write_recipe(folder / f"{method}.yaml", **changes)
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
    what = f"{method}: bitwise after the kills at {', '.join(points)}"
    result = attempt("R1", what, run, to_the_end(run, out, recipe))
    yield from [result] * len(points)


def stops(folder: Path) -> Iterator[Result]:
    """R7: SIGTERM to a process of a run in training; each time it goes on; bitwise in the end."""
    yield from _stops(folder, (("memdiff", signal.SIGTERM), ("launch.py", signal.SIGTERM)))


def more_stops(folder: Path) -> Iterator[Result]:
    """R7: the other processes, and the other signals."""
    others = (
        ("runner", signal.SIGTERM),
        ("group", signal.SIGTERM),
        ("memdiff", signal.SIGHUP),
        ("rank 1", signal.SIGINT),
    )
    yield from _stops(folder, others)


def _stops(folder: Path, signals: tuple[tuple[str, signal.Signals], ...]) -> Iterator[Result]:
    # when it saved changes nothing of what it saved last
    recipe = write_recipe(folder / "recipe.yaml", run={"save_every": 100})
    out = folder / "stopped"
    for whom, number in signals:
        before = last_round(out)
        run = train(recipe, out)

        def action(run: Run = run, before: int = before, whom: str = whom, number: int = number) -> float:
            run.until(trained(out, before + 1 if before >= 0 else 1))
            took = struck(run, signalled(run, whom, number), 75, "is saved; the same command goes on", 25.0)
            assert status(out)["state"] == "stopped"
            return took

        yield attempt("R7", f"{number.name} to {whom}, in training", run, action)
    run = train(recipe, out)
    yield attempt("R7", f"resumed bitwise after {len(signals)} stops", run, to_the_end(run, out, recipe))


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
            return struck(run, signalled(run, whom, number), 75, "nothing had been trained", 25.0)

        yield attempt("R7", f"{signal.Signals(number).name} to {whom}, {moment}", run, action)


HANGS = """import os, time
calls = 0
def score(images, prompts):
    global calls
    calls += 1
    if calls > 3 and os.environ['RANK'] == '1':
        time.sleep(100000)
    return images.mean(dim=(1, 2, 3))
"""
LIMIT = {"watchdog_seconds": WATCHDOG_SECONDS, "rounds": 500}


def hanging_reward(folder: Path) -> Path:
    """A recipe whose reward hangs on rank 1 at its fourth call."""
    (folder / "mine.py").write_text(HANGS)
    reward = [{"kind": "python", "file": str(folder / "mine.py")}]
    return write_recipe(folder / "reward.yaml", run=LIMIT, reward=reward)


def frozen_and_hung(folder: Path) -> Iterator[Result]:
    """R6 and A11: a rank is stopped: the watchdog; a stop while a reward hangs."""
    recipe, out = write_recipe(folder / "frozen.yaml", run=LIMIT), folder / "frozen"
    run = train(recipe, out)

    def freeze() -> float:
        run.until(trained(out, 1))
        words, seconds = f"rank 1 {NO_PROGRESS}", WATCHDOG_SECONDS + 15
        took = struck(run, signalled(run, "rank 1", signal.SIGSTOP), 6, words, seconds)
        assert "Current thread" in (out / "launcher.log").read_text(), "no stacks in the log"
        return took

    yield attempt("R6", "SIGSTOP of rank 1", run, freeze)
    recipe, stopped = hanging_reward(folder), folder / "asked"
    asked = train(recipe, stopped)

    def stop_while_it_hangs() -> float:
        asked.until(trained(stopped, 1))
        time.sleep(3)
        return struck(asked, signalled(asked, "memdiff", signal.SIGTERM), 75, "is saved", 25.0)

    yield attempt("A11", "SIGTERM to memdiff while a reward hangs on rank 1", asked, stop_while_it_hangs)


def more_hung(folder: Path) -> Iterator[Result]:
    """R6: a rank hangs in C, a reward hangs in Python."""
    recipe, out = write_recipe(folder / "hung.yaml", run=LIMIT), folder / "hung"
    hung = train(recipe, out, MEMDIFF_FAULT="hang:point=train,rank=0,nth=4")

    def hang() -> float:
        hung.until(trained(out, 1))
        return struck(hung, lambda: None, 6, f"rank 0 {NO_PROGRESS}", WATCHDOG_SECONDS + 20)

    yield attempt("R6", "rank 0 hangs in C, in a piece", hung, hang)
    recipe, other = hanging_reward(folder), folder / "reward"
    slow = train(recipe, other)

    def wait() -> float:
        slow.until(trained(other, 1))
        return struck(slow, lambda: None, 6, "at: reward score", WATCHDOG_SECONDS + 25)

    yield attempt("R6", "a reward hangs on rank 1", slow, wait)


def raising_rewards(folder: Path) -> Iterator[Result]:
    """R16: a reward raises at its fourth call, on one rank or on all: exit code 3, seconds from then on."""
    for ranks in ("1", "01"):
        moment, file = folder / f"moment_{ranks}", folder / f"raises_{ranks}.py"
        fails = f"import pathlib; pathlib.Path({str(moment)!r}).touch(); raise RuntimeError('no luck')"
        file.write_text(HANGS.replace("== '1'", f"in {ranks!r}").replace("time.sleep(100000)", fails))
        reward = [{"kind": "python", "file": str(file)}]
        out = folder / f"raised_{ranks}"
        run = train(write_recipe(folder / f"raises_{ranks}.yaml", run=LIMIT, reward=reward), out)

        def action(run: Run = run, moment: Path = moment) -> float:
            run.until(moment.exists)
            return struck(run, lambda: None, 3, "RuntimeError: no luck", 5.0)

        yield attempt("R16", f"a reward raises on rank {' and '.join(ranks)}", run, action)


def lost_while_another_works(folder: Path) -> Iterator[Result]:
    """R5: launch.py asks the other rank to stop, which is in Python code as it loads: that is no request to stop."""
    for number in range(3):
        moment, file, out = folder / f"moment_{number}", folder / f"sleeps_{number}.py", folder / f"lost_{number}"
        touches = f"import pathlib; pathlib.Path({str(moment)!r}).touch(); time.sleep(100000)"
        file.write_text(HANGS.replace("calls > 3", "calls == 1").replace("time.sleep(100000)", touches))
        run = train(write_recipe(file.with_suffix(".yaml"), reward=[{"kind": "python", "file": str(file)}]), out)

        def action(run: Run = run, moment: Path = moment) -> float:
            run.until(moment.exists)
            return struck(run, signalled(run, "rank 0", signal.SIGKILL), 6, "was killed by SIGKILL; nothing had", 10.0)

        yield attempt("R5", "kill -9 of rank 0 while rank 1 sleeps in its first reward", run, action)


def orphans(folder: Path) -> Iterator[Result]:
    """R8: kill -9 of memdiff, the runner or launch.py; nothing lives 5 s later, and memdiff does not say 0."""
    yield from _orphans(folder, ("launch.py", "runner", "memdiff"))


def more_orphans(folder: Path) -> Iterator[Result]:
    """R8: the same kills again, and those of ranks."""
    yield from _orphans(folder, 3 * ("launch.py", "runner", "memdiff", "rank 0", "rank 1"))


def _orphans(folder: Path, victims: tuple[str, ...]) -> Iterator[Result]:
    recipe = write_recipe(folder / "orphans.yaml", run={"rounds": 500})
    out = folder / "orphans"
    for whom in victims:
        run, before = train(recipe, out), last_round(out)

        def action(run: Run = run, whom: str = whom, before: int = before) -> float:
            run.until(trained(out, before + 1 if before >= 0 else 1))
            strike = signalled(run, whom, signal.SIGKILL)
            if whom != "memdiff":
                words = "was killed by SIGKILL" if whom.startswith("rank") else "is gone, so rank"
                return struck(run, strike, 6, words, 10.0)
            strike()
            begun = time.monotonic()
            run.process.wait()
            assert run.orphans(PATIENCE * SECONDS_FOR_ORPHANS) == [], "processes live on"
            return time.monotonic() - begun

        yield attempt("R8", f"kill -9 of {whom}", run, action)


def failing_writes(folder: Path) -> Iterator[Result]:
    """R9: one rank's save fails once (the run goes on, warned); then every one: the run ends, and can go on."""
    recipe = write_recipe(folder / "full.yaml", run={"rounds": 3})
    out = folder / "full"
    run = train(recipe, out, MEMDIFF_FAULT="full:point=save.begin,rank=1,nth=2")

    def goes_on() -> float:
        complete_with_one_warning(run, "could not be saved by rank 1", "MiB are free")
        assert len(rows(out)) == 3
        return 0.0

    yield attempt("R9", "a write fails on rank 1 once", run, goes_on)
    again = train(
        write_recipe(folder / "full.yaml", run={"rounds": 9}),
        out,
        MEMDIFF_FAULT="every-full:point=save.before_manifest",
    )

    def ends() -> float:
        struck(again, lambda: None, 5, "that is the third time in a row", 600.0)
        return 0.0  # nothing is struck at a moment of its own

    yield attempt("R9", "every save fails on rank 0", again, ends)
    after = train(write_recipe(folder / "full.yaml", run={"rounds": 4}), out)

    def resumes() -> float:
        assert after.end(1800) == 0 and "resuming after round 3" in after.said(), after.said()[-1500:]
        return 0.0

    yield attempt("R9", "the checkpoint before is intact", after, resumes)
