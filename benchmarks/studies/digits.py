"""The demo over several seeds: `python -m benchmarks.studies.digits [--seeds 0 1 2]` (make bench).

Each seed is launch/demo.sh's own commands in a fresh folder. Writes results/digits.json (every number with its
provenance), results/digits.md (the table) and results/digits.png (the README's picture). The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.provenance import of_machine
from benchmarks.studies.written import RESULTS, write_study
from memdiff.digits.judge import wilson_interval
from memdiff.reporting.grid import image_grid
from memdiff.reporting.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "launch/recipes/digits_reinforce.yaml"
SHOWN = 48
STEPS = 25  # the recipe's: the base is sampled as the trained model is


def memdiff(*words: object) -> None:
    """One command of the demo, its output on this terminal."""
    subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, check=True)


def run_seed(seed: int, folder: Path, gpus: int) -> dict[str, Any]:
    """Train, sample, judge, report; seconds of the whole and what was found."""
    start = time.monotonic()
    memdiff(
        "memdiff", "train", RECIPE, "--gpus", gpus, "--out", folder, "--resume", "never", "--set", f"run.seed={seed}"
    )
    seconds_train = time.monotonic() - start
    before, after = folder / "images_before", folder / "images_after"
    memdiff(
        "memdiff",
        "sample",
        "digits",
        "--num-images",
        400,
        "--steps",
        STEPS,
        "--gpus",
        gpus,
        "--seed",
        seed,
        "--out",
        before,
    )
    memdiff("memdiff", "sample", folder, "--num-images", 400, "--gpus", gpus, "--seed", seed, "--out", after)
    memdiff("memdiff.digits.judge", before, after, "--json", folder / "judge.json")
    memdiff("memdiff", "report", folder)
    rows = read_rows(folder / "metrics.jsonl")
    status = json.loads((folder / "status.json").read_text())
    return {
        "seed": seed,
        "rounds": rows[-1]["round"],
        "seconds": round(time.monotonic() - start, 1),
        "seconds_train": round(seconds_train, 1),
        "judge": json.loads((folder / "judge.json").read_text()),
        "evaluated": [[row["round"], row["evaluate/reward/digits_judge"]] for row in rows if "evaluate/images" in row],
        "environment": status["environment"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one row a seed and the medians."""
    head = "| seed | rounds | share 5-9 before -> after | recognised before -> after | Frechet distance | minutes |\n"
    lines = [head + "|---|---|---|---|---|---|\n"]
    for result in results:
        b, a = result["judge"]["before"], result["judge"]["after"]
        lines.append(
            f"| {result['seed']} | {result['rounds']} | {b['minority_share']:.3f} -> {a['minority_share']:.3f} "
            f"| {b['recognised_share']:.3f} -> {a['recognised_share']:.3f} "
            f"| {b['frechet_distance']:.2f} -> {a['frechet_distance']:.2f} | {result['seconds'] / 60:.1f} |\n"
        )
    return "".join(lines)


def median(results: list[dict[str, Any]], when: str, key: str) -> float:
    """The median of a measured value over the seeds."""
    return statistics.median(result["judge"][when][key] for result in results)


def picture(results: list[dict[str, Any]], folder: Path, file: Path) -> None:
    """Base samples, trained samples from the same noise, and the share over the rounds."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    for axis, name, title in ((axes[0], "images_before", "before"), (axes[1], "images_after", "after, the same noise")):
        files = sorted((folder / name).glob("image_*.png"))[:SHOWN]
        pixels = np.stack([np.asarray(Image.open(one)) for one in files])[..., None]
        axis.imshow(np.asarray(image_grid(255 - pixels if pixels.mean() > 127 else pixels, columns=8)))
        axis.set_title(title)
        axis.axis("off")
    rounds, shares = (), ()
    for result in results:
        rounds, shares = zip(*result["evaluated"], strict=True)
        axes[2].plot(rounds, shares, marker="o", markersize=3, label=f"seed {result['seed']}")
    images = 64
    low, high = zip(*(wilson_interval(round(s * images), images) for s in shares), strict=True)
    axes[2].fill_between(rounds, low, high, alpha=0.15, label=f"95 % of seed {results[-1]['seed']}")
    axes[2].axhline(0.6, linestyle=":", color="grey")
    axes[2].set(xlabel="round of 64 images", ylabel="share of digits 5-9, second classifier", ylim=(0, 1))
    axes[2].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Runs the seeds and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench_digits")
    options = parser.parse_args()
    machine = of_machine()
    results = [run_seed(seed, options.runs / f"seed_{seed}", options.gpus) for seed in options.seeds]
    summary = {
        "median_share_before": median(results, "before", "minority_share"),
        "median_share_after": median(results, "after", "minority_share"),
        "median_recognised_before": median(results, "before", "recognised_share"),
        "median_recognised_after": median(results, "after", "recognised_share"),
        "median_frechet_before": median(results, "before", "frechet_distance"),
        "median_frechet_after": median(results, "after", "frechet_distance"),
        "median_minutes": statistics.median(result["seconds"] for result in results) / 60,
    }
    command = f"python -m benchmarks.studies.digits --seeds {' '.join(map(str, options.seeds))} --gpus {options.gpus}"
    write_study("digits", command, machine, summary, {"seeds": results}, table(results))
    picture(results, options.runs / f"seed_{options.seeds[0]}", RESULTS / "digits.png")


if __name__ == "__main__":
    main()
