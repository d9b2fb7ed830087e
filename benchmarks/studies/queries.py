"""Reward queries of REINFORCE and DRaFT, and seconds of DRaFT and DRaFT-LV: `python -m benchmarks.studies.queries`.

The embedded text-to-image model, LoRA r=4; the reward is how much more ink is on the left half of the picture than on
the right, in -1..1 (ink alone has a ceiling that both methods reach). Chains of 10 steps with eta 1, no guidance,
trailing timesteps (so that the last step, the one that DRaFT-1 differentiates, has noise to take away). REINFORCE has a
budget of 5,000 images in rounds of 64; DRaFT-1 and DRaFT-LV run 50 rounds of 4. Every method's learning rate is the
best of one grid on the first seed, by the highest reward of the run (queries) or within equal seconds (LV); then all
seeds run. The reward is that of 64 images from noise that never changes; these are not counted as queries.

Each run is `memdiff train` in a process of its own, one rank, one thread; `--jobs` of them at a time, so that seconds
are compared under equal conditions. Writes results/queries.json, queries.md and queries.png; the last line is JSON.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.provenance import ROOT, of_machine
from benchmarks.studies.written import RESULTS, write_study
from memdiff.reporting.rows import read_rows

RATES = (1e-3, 3e-3, 1e-2)
BUDGET = 5000  # images of REINFORCE
LEFT = ROOT / "launch/recipes/rewards/left.py"
COMMON = (
    f"reward=[{{kind: python, name: left, file: {LEFT}, differentiable: true}}]",
    "sampler.steps=10", "sampler.eta=1", "sampler.guidance=1", "sampler.timestep_spacing=trailing",
    "evaluate.images=64", "evaluate.rewards=[]",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """How a method is run: a shipped recipe with these keys set."""

    title: str
    recipe: str
    images: int  # of a round
    every: int  # rounds from one evaluation to the next
    sets: tuple[str, ...] = ()
    queries: int = 1  # of the reward, an image


METHODS = {
    "reinforce": Method(
        "REINFORCE", "launch/recipes/digits_text_ddpo.yaml", 64, 13, ("method.inner_updates=1", "run.save_every=1000")
    ),
    "draft": Method(
        "DRaFT-1", "launch/recipes/digits_text_draft.yaml", 4, 2, ("method.target=null", "run.save_every=1000")
    ),
    "draft_lv": Method(
        "DRaFT-LV, n = 2",
        "launch/recipes/digits_text_draft_lv.yaml",
        4,
        2,
        ("method.target=null", "run.save_every=1000"),
        queries=2,
    ),
}


@dataclass(frozen=True)
class Curve:
    """One run, an entry an evaluation: reward queries, seconds of training and mean reward until then."""

    method: str
    rate: float
    seed: int
    queries: tuple[int, ...]
    seconds: tuple[float, ...]
    rewards: tuple[float, ...]

    @property
    def best(self) -> float:
        """The highest reward, whose weights the trainer keeps."""
        return max(self.rewards)

    def best_at(self, seconds: float) -> float:
        """The highest reward until then, interpolated."""
        return float(np.interp(seconds, self.seconds, np.maximum.accumulate(self.rewards)))

    def queries_until(self, reward: float) -> int | None:
        """How many it took to reach a reward; None where it never did."""
        return next((q for q, r in zip(self.queries, self.rewards, strict=True) if r >= reward), None)


def run(name: str, rate: float, seed: int, *, rounds: int, folder: Path) -> Curve:
    """Trains unless the folder holds the finished run already, and reads its rows."""
    method, out = METHODS[name], folder / f"{name}_{rate:g}_{seed}"
    sets = (
        *COMMON, *method.sets, f"run.seed={seed}", f"run.rounds={rounds}", f"run.images_per_round={method.images}",
        f"optimizer.learning_rate={rate}", f"evaluate.every={method.every}",
    )  # fmt: skip
    words = [word for one in sets for word in ("--set", one)]
    command = [sys.executable, "-m", "memdiff", "train", method.recipe, "--gpus", "1", "--out", str(out), *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    rows = read_rows(out / "metrics.jsonl")
    queries, seconds, rewards, spent = [], [], [], 0.0
    for row in rows:
        spent += sum(row.get(f"seconds_{phase}", 0.0) for phase in ("rollout", "reward", "train"))
        if "evaluate/reward_mean" in row:
            queries.append(row["images"] * method.queries)
            seconds.append(round(spent, 2))
            rewards.append(row["evaluate/reward_mean"])
    return Curve(name, rate, seed, tuple(queries), tuple(seconds), tuple(rewards))


def best_rate(curves: Sequence[Curve], seconds: float | None = None) -> float:
    """By the highest reward of the run, or until `seconds`."""
    return max(curves, key=lambda curve: curve.best if seconds is None else curve.best_at(seconds)).rate


def of_seeds(curves: Sequence[Curve], name: str, rate: float) -> list[Curve]:
    """The runs of a method at its rate, by seed."""
    return sorted((c for c in curves if c.method == name and c.rate == rate), key=lambda c: c.seed)


def ratios(reinforce: Sequence[Curve], draft: Sequence[Curve], *, part: float = 1.0) -> list[dict[str, Any]]:
    """A row a seed: a part of REINFORCE's gain, from first to highest reward, and the queries both took to it."""
    rows = []
    for slow, fast in zip(reinforce, draft, strict=True):
        before = slow.rewards[0]
        reward = slow.best - (1 - part) * (slow.best - before)
        spent, needed = slow.queries_until(reward), fast.queries_until(reward)
        rows.append({
            "seed": slow.seed, "part": part, "reward_before": before, "reward": reward, "reinforce": spent,
            "draft": needed, "ratio": spent / needed if needed and spent else None,
        })  # fmt: skip
    return rows


def at_equal_seconds(draft: Sequence[Curve], lv: Sequence[Curve], seconds: float) -> list[dict[str, Any]]:
    """A row a seed: both rewards after the same training time."""
    return [
        {"seed": one.seed, "seconds": seconds, "draft": one.best_at(seconds), "draft_lv": other.best_at(seconds)}
        for one, other in zip(draft, lv, strict=True)
    ]


def picture(curves: Mapping[str, Sequence[Curve]], seconds: float, file: Path) -> None:
    """Left: reward against queries. Right: DRaFT-1 and DRaFT-LV against seconds."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = {"reinforce": "tab:blue", "draft": "tab:orange", "draft_lv": "tab:green"}
    for name in ("reinforce", "draft", "draft_equal", "draft_lv"):
        method = "draft" if name == "draft_equal" else name
        for number, curve in enumerate(curves[name]):
            label = f"{METHODS[method].title}, lr {curve.rate:g}" if number == 0 else None
            style = {"color": colors[method], "label": label, "alpha": 0.8}
            if name in ("reinforce", "draft"):
                left.plot([max(1, q) for q in curve.queries], curve.rewards, **style)
            else:
                right.plot(curve.seconds, curve.rewards, **style)
    final = statistics.median(curve.best for curve in curves["reinforce"])
    left.axhline(final, linestyle=":", color="grey", label="REINFORCE at its best, median")
    left.set(xscale="log", xlabel="reward queries", ylabel="mean reward of 64 images, three seeds")
    right.axvline(seconds, linestyle=":", color="grey", label=f"{seconds:.3g} s: equal time")
    right.set(xlabel="seconds of training (one thread)", ylabel="mean reward of 64 images, three seeds")
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.grid(alpha=0.2)
    figure.savefig(file, dpi=110)


def table(queries: Sequence[Mapping[str, Any]], equal: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: both comparisons, a row a seed."""
    lines = ["| seed | reward before | part of REINFORCE's gain | reward | its queries | DRaFT-1's queries | ratio |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in queries:
        draft, ratio = (row["draft"], f"{row['ratio']:.0f}") if row["draft"] else ("never", "none")
        lines.append(
            f"| {row['seed']} | {row['reward_before']:.3f} | {row['part']:.0%} | {row['reward']:.3f} "
            f"| {row['reinforce']} | {draft} | {ratio} |"
        )
    lines += ["", "| seed | seconds | DRaFT-1 | DRaFT-LV, n = 2 |", "|---|---|---|---|"]
    lines += [f"| {r['seed']} | {r['seconds']:.0f} | {r['draft']:.3f} | {r['draft_lv']:.3f} |" for r in equal]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Tunes, runs the seeds, compares and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="the grid, the same for every method")
    parser.add_argument("--rounds", type=int, default=50, help="of DRaFT-1 and DRaFT-LV")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench_queries")
    options = parser.parse_args()
    machine, first = of_machine(), options.seeds[0]
    rounds = {"reinforce": BUDGET // METHODS["reinforce"].images, "draft": options.rounds, "draft_lv": options.rounds}

    def all_of(wanted: Sequence[tuple[str, float, int]]) -> list[Curve]:
        with ThreadPoolExecutor(options.jobs) as pool:
            return list(pool.map(lambda one: run(*one, rounds=rounds[one[0]], folder=options.runs), wanted))

    grid = all_of([(name, rate, first) for name in METHODS for rate in options.rates])
    tried = {name: [curve for curve in grid if curve.method == name] for name in METHODS}
    seconds = min(curve.seconds[-1] for name in ("draft", "draft_lv") for curve in tried[name])
    rates = {
        "reinforce": best_rate(tried["reinforce"]),
        "draft": best_rate(tried["draft"]),
        "draft_equal": best_rate(tried["draft"], seconds),
        "draft_lv": best_rate(tried["draft_lv"], seconds),
    }
    method_of = {key: key.removesuffix("_equal") for key in rates}
    others = all_of(sorted({(method_of[key], rate, seed) for key, rate in rates.items() for seed in options.seeds[1:]}))
    curves = {key: of_seeds([*grid, *others], method_of[key], rate) for key, rate in rates.items()}
    seconds = min([seconds, *(c.seconds[-1] for key in ("draft_equal", "draft_lv") for c in curves[key])])
    by_queries = ratios(curves["reinforce"], curves["draft"])
    nearly = ratios(curves["reinforce"], curves["draft"], part=0.95)
    by_seconds = at_equal_seconds(curves["draft_equal"], curves["draft_lv"], seconds)
    summary = {
        "rates": rates,
        "median_ratio": statistics.median(row["ratio"] or 0.0 for row in by_queries),
        "median_ratio_95": statistics.median(row["ratio"] or 0.0 for row in nearly),
        "equal_seconds": by_seconds,
    }
    content = {"queries": [*by_queries, *nearly], "curves": [vars(curve) for curve in (*grid, *others)]}
    command = f"python -m benchmarks.studies.queries --seeds {' '.join(map(str, options.seeds))} --jobs {options.jobs}"
    write_study("queries", command, machine, summary, content, table([*by_queries, *nearly], by_seconds))
    picture(curves, seconds, RESULTS / "queries.png")


if __name__ == "__main__":
    main()
