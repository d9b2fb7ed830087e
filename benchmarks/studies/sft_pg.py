"""SFT-PG on the embedded digits over several seeds: `python -m benchmarks.studies.sft_pg [--seeds 0 1 2] [--rounds N]`.

Trains launch/recipes/digits_sft_pg.yaml with each seed on one core, and measures 2,000 images of DDPM-10 (the untrained
model on the recipe's chain), DDIM-10 (the same timesteps without noise) and SFT-PG, all from the same noise: the
Frechet distance to all real digits in the second classifier's features (benchmarks/studies/frechet_reward.py), and the
share of 5-9. The floor is the 360 held-out real digits against all of them.

Writes results/sft_pg.json (every number with its provenance), results/sft_pg.md and results/sft_pg.png: the distance
over updates from fixed noise, and images from the same noise before and after. The last line is JSON. A seed whose
folder holds a finished run is measured as it is; one that was stopped goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.provenance import of_tree
from benchmarks.studies.frechet_reward import frechet_to_real
from memdiff.chain.noise import Noise, Stream
from memdiff.digits.classifiers import load_classifier
from memdiff.digits.scans import is_minority, real_digits
from memdiff.models.config import DdpmConfig, ModelConfig, SamplerConfig
from memdiff.models.load import load_policy
from memdiff.models.options import ModelOptions
from memdiff.models.policy import rollout
from memdiff.recipe.reading import read_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parents[1] / "results"
RECIPE = ROOT / "launch/recipes/digits_sft_pg.yaml"
FRECHET = "{kind: python, name: frechet, file: benchmarks/studies/frechet_reward.py, chunk: 100000}"
CPU = torch.device("cpu")
SHOWN = 64


def train(seed: int, folder: Path, rounds: int, every: int, images: int) -> float:
    """One run, to its end. Returns its seconds, 0 where it was finished before."""
    start = time.monotonic()
    settings = [
        f"run.seed={seed}", f"run.rounds={rounds}", f"evaluate.every={every}", f"evaluate.images={images}",
        f"evaluate.rewards=[{FRECHET}]",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    subprocess.run(
        [sys.executable, "-m", "memdiff", "train", RECIPE, "--gpus", "1", "--out", folder, *words], cwd=ROOT, check=True
    )
    return time.monotonic() - start


def images_of(model: ModelConfig, sampler: SamplerConfig, count: int) -> torch.Tensor:
    """N 1 16 16 in [0, 1], from noise that no training sees."""
    policy = load_policy(model, sampler, ModelOptions(), device=CPU)
    noise = Noise(seed=2026, stream=Stream.SAMPLE, round_number=0, shape=policy.shape)
    with torch.no_grad():
        x_0 = rollout(policy, noise, range(count), [""] * count, batch=64, storage=torch.float32)
        return policy.decode(x_0)


@torch.no_grad()
def measured(images_N1HW: torch.Tensor) -> dict[str, float]:
    """What the second classifier makes of them."""
    digits_N = load_classifier("judge")(images_N1HW).argmax(dim=1)
    share = float(is_minority(digits_N).double().mean())
    return {"frechet": round(frechet_to_real(images_N1HW), 3), "share_5_to_9": round(share, 3)}


def picture(recipe: Recipe, pictures: dict[str, torch.Tensor], curves: dict[int, list[Any]], file: Path) -> None:
    """The distance over updates of every seed, and images from the same noise."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    axes = figure.subplots(1, 1 + len(pictures), width_ratios=(1.2, *[1] * len(pictures)))
    for seed, points in curves.items():
        updates, distances = zip(*points, strict=True)
        axes[0].plot(updates, distances, marker="o", markersize=3, label=f"seed {seed}")
    axes[0].set(xlabel=f"updates, {recipe.sampler.steps} steps", ylabel="Frechet distance", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=8)
    for axis, (title, images_N1HW) in zip(axes[1:], pictures.items(), strict=True):
        grid_RCHW = images_N1HW[:SHOWN, 0].view(8, 8, *images_N1HW.shape[2:])
        axis.imshow(1 - grid_RCHW.permute(0, 2, 1, 3).reshape(8 * 16, 8 * 16), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Runs the seeds and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=None, help="The recipe's, where it is left out.")
    parser.add_argument("--every", type=int, default=10, help="Rounds between two points of the curve.")
    parser.add_argument("--evaluated", type=int, default=256, help="Images of each point.")
    parser.add_argument("--images", type=int, default=2000, help="Images of the final numbers.")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench_sft_pg")
    options = parser.parse_args()
    recipe = read_recipe(RECIPE)
    rounds = options.rounds or recipe.run.rounds
    without_noise = recipe.sampler.model_copy(update={"eta": 0.0, "final_std": 0.0})
    pictures = {
        "DDPM-10": images_of(recipe.model, recipe.sampler, options.images),
        "DDIM-10": images_of(recipe.model, without_noise, options.images),
    }
    summary: dict[str, Any] = {
        "command": f"python -m benchmarks.studies.sft_pg {' '.join(sys.argv[1:])}".strip(),
        **of_tree(),
        "images": options.images,
        "floor": round(frechet_to_real(real_digits("held_out")[0]), 3),
        **{name: measured(images) for name, images in pictures.items()},
    }
    seeds, curves = [], {}
    for seed in options.seeds:
        folder = options.runs / f"seed_{seed}"
        seconds = train(seed, folder, rounds, options.every, options.evaluated)
        images_N1HW = images_of(DdpmConfig(kind="ddpm", path=str(folder / "model")), recipe.sampler, options.images)
        rows = read_rows(folder / "metrics.jsonl")
        evaluated = [row for row in rows if "evaluate/reward/frechet" in row]
        curves[seed] = [(row["update"], row["evaluate/reward/frechet"]) for row in evaluated]
        pictures = pictures if len(pictures) == 3 else {**pictures, f"SFT-PG, seed {seed}": images_N1HW}
        seeds.append(
            {"seed": seed, "rounds": rows[-1]["round"], "updates": rows[-1]["update"], "rate": rows[-1]["rate"],
             "seconds": round(seconds, 1), **measured(images_N1HW), "curve": curves[seed]}
        )  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sft_pg.json").write_text(json.dumps({"summary": summary, "seeds": seeds}, indent=2) + "\n")
    lines = ["| | Frechet distance | share of 5-9 | updates |\n|---|---|---|---|\n"]
    lines += [
        f"| {name} | {summary[name]['frechet']} | {summary[name]['share_5_to_9']} | |\n" for name in list(pictures)[:2]
    ]
    lines += [f"| SFT-PG, seed {s['seed']} | {s['frechet']} | {s['share_5_to_9']} | {s['updates']} |\n" for s in seeds]
    (RESULTS / "sft_pg.md").write_text("".join(lines))
    picture(recipe, pictures, curves, RESULTS / "sft_pg.png")
    print("".join(lines))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
