"""SFT-PG on the embedded digits over several seeds: `python -m benchmarks.studies.sft_pg [--seeds 0 1 2] [--rounds N]`.

Trains launch/recipes/digits_sft_pg.yaml with each seed on one core, and measures 2,000 images of DDPM-10 (the untrained
model on the recipe's chain), DDIM-10 (the same timesteps without noise) and SFT-PG, all from the same noise: the
Frechet distance to all real digits in the second classifier's features (benchmarks/studies/frechet_reward.py), the
same to real digits of the images' own share of 5-9 (memdiff.digits.judge), that share, and how many are recognised.
The floor is as many real digits, drawn with replacement, and the 360 held-out ones, each against all of them; real
digits of DDPM-10's share of 5-9 say how much of its distance is the share's.

Writes results/sft_pg.json (every number with its provenance), results/sft_pg.md and results/sft_pg.png: the distance
over updates from fixed noise, and images from the same noise before and after. The last line is JSON.

A seed whose folder holds a finished run is measured as it is, and one that was stopped goes on. What is written covers
every finished seed in the folder: `--seeds 2` trains that one alone, and `--seeds` without a number none.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.provenance import of_machine
from benchmarks.studies.frechet_reward import frechet_to_real
from benchmarks.studies.written import RESULTS, write_study
from memdiff.chain.noise import Noise, Stream
from memdiff.digits.judge import judge_images
from memdiff.digits.scans import is_minority, real_digits
from memdiff.models.config import DdpmConfig, ModelConfig
from memdiff.models.load import load_policy
from memdiff.models.options import ModelOptions
from memdiff.models.policy import rollout
from memdiff.models.sampler_config import SamplerConfig
from memdiff.recipe.reading import read_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "launch/recipes/digits_sft_pg.yaml"
FRECHET = "{kind: python, name: frechet, file: benchmarks/studies/frechet_reward.py, chunk: 100000}"
CPU = torch.device("cpu")
SHOWN = 64
PHASES = ("seconds_rollout", "seconds_reward", "seconds_train")


def train(seed: int, folder: Path, rounds: int, every: int, images: int) -> None:
    """One run, to its end; one that is finished stays as it is."""
    settings = [
        f"run.seed={seed}", f"run.rounds={rounds}", f"evaluate.every={every}", f"evaluate.images={images}",
        f"evaluate.rewards=[{FRECHET}]",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    subprocess.run(
        [sys.executable, "-m", "memdiff", "train", RECIPE, "--gpus", "1", "--out", folder, *words], cwd=ROOT, check=True
    )


def images_of(model: ModelConfig, sampler: SamplerConfig, count: int, kept: Path) -> torch.Tensor:
    """N 1 16 16 in [0, 1], from noise that no training sees; those of an earlier call where they are `kept`."""
    if kept.is_file() and len(images_N1HW := torch.load(kept, weights_only=True)) == count:
        return images_N1HW
    policy = load_policy(model, sampler, ModelOptions(), device=CPU)
    noise = Noise(seed=2026, stream=Stream.SAMPLE, round_number=0, shape=policy.shape)
    with torch.no_grad():
        x_0 = rollout(policy, noise, range(count), [""] * count, batch=64, storage=torch.float32)
        images_N1HW = policy.decode(x_0)
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(images_N1HW, kept)
    return images_N1HW


def measured(images_N1HW: torch.Tensor) -> dict[str, float]:
    """What the second classifier makes of them."""
    judgement = judge_images(images_N1HW)
    return {
        "frechet": round(frechet_to_real(images_N1HW), 3),
        "frechet_own_share": round(judgement.frechet_distance, 3),
        "share_5_to_9": round(judgement.minority_share, 3),
        "recognised": round(judgement.recognised_share, 3),
    }


def floors(count: int, share: float) -> dict[str, float]:
    """What real digits themselves score: as many as are measured, those that no training sees, and as many of which
    this share is of the group 5-9, as with the untrained model: what the share alone costs."""
    (train_N1HW, train_N), (held_out_N1HW, held_out_N) = real_digits("train"), real_digits("held_out")
    every_N1HW, generator = torch.cat([train_N1HW, held_out_N1HW]), torch.Generator().manual_seed(0)
    minority_N = is_minority(torch.cat([train_N, held_out_N])).double()
    weights_N = share * minority_N / minority_N.sum() + (1 - share) * (1 - minority_N) / (1 - minority_N).sum()
    drawn, skewed = (
        every_N1HW[torch.multinomial(weights, count, replacement=True, generator=generator)]
        for weights in (torch.ones_like(weights_N), weights_N)
    )
    return {
        "floor": round(frechet_to_real(drawn), 3),
        "floor_held_out": round(frechet_to_real(held_out_N1HW), 3),
        "of_share_alone": round(frechet_to_real(skewed), 3),
    }


def of_seed(seed: int, folder: Path, images_N1HW: torch.Tensor) -> dict[str, Any]:
    """What a finished run shows of itself; its seconds are those of rounds, without evaluations and start."""
    rows = read_rows(folder / "metrics.jsonl")
    trained = [row for row in rows if "ipm" in row]
    return {
        "seed": seed,
        "rounds": trained[-1]["round"],
        "updates": trained[-1]["update"],
        "rate": trained[-1]["rate"],
        **{phase: round(sum(row[phase] for row in trained), 1) for phase in PHASES},
        **measured(images_N1HW),
        "curve": [
            (row["update"], round(row["evaluate/reward/frechet"], 3))
            for row in rows
            if "evaluate/reward/frechet" in row
        ],
    }


def picture(
    recipe: Recipe, pictures: dict[str, torch.Tensor], seeds: list[dict[str, Any]], lines: dict[str, float], file: Path
) -> None:
    """The distance over updates of every seed, and images from the same noise."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    axes = figure.subplots(1, 1 + len(pictures), width_ratios=(1.2, *[1] * len(pictures)))
    for seed in seeds:
        updates, distances = zip(*seed["curve"], strict=True)
        axes[0].plot(updates, distances, marker="o", markersize=3, label=f"seed {seed['seed']}")
    for style, (name, distance) in zip((":", "--", "-."), lines.items(), strict=False):
        axes[0].axhline(distance, linestyle=style, color="grey", linewidth=1, label=name)
    axes[0].set(xlabel=f"updates, {recipe.sampler.steps} steps", ylabel="Frechet distance", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=8)
    for axis, (title, images_N1HW) in zip(axes[1:], pictures.items(), strict=True):
        grid_RCHW = images_N1HW[:SHOWN, 0].view(8, 8, *images_N1HW.shape[2:])
        axis.imshow(1 - grid_RCHW.permute(0, 2, 1, 3).reshape(8 * 16, 8 * 16), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(file, dpi=110)


def table(baselines: dict[str, dict[str, float]], seeds: list[dict[str, Any]]) -> str:
    """Markdown: the baselines and a row for each seed."""
    head = "| 10 steps | Frechet distance | of DDPM-10's | at its own share | share of 5-9 | recognised | minutes |\n"
    lines = [head + "|---|---|---|---|---|---|---|\n"]
    rows = [(name, numbers, "") for name, numbers in baselines.items()]
    rows += [
        (f"SFT-PG, seed {seed['seed']}", seed, f"{sum(seed[phase] for phase in PHASES) / 60:.0f}") for seed in seeds
    ]
    for name, numbers, minutes in rows:
        ratio = numbers["frechet"] / baselines["DDPM-10"]["frechet"]
        lines.append(
            f"| {name} | {numbers['frechet']:.2f} | {ratio:.2f} | {numbers['frechet_own_share']:.2f} "
            f"| {numbers['share_5_to_9']:.2f} | {numbers['recognised']:.2f} | {minutes} |\n"
        )
    return "".join(lines)


def main() -> None:
    """Runs the seeds and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=None, help="The recipe's, where it is left out.")
    parser.add_argument("--every", type=int, default=25, help="Rounds between two points of the curve.")
    parser.add_argument("--evaluated", type=int, default=400, help="Images of each point.")
    parser.add_argument("--images", type=int, default=2000, help="Images of the final numbers.")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench_sft_pg")
    options = parser.parse_args()
    machine, recipe = of_machine(), read_recipe(RECIPE)
    for seed in options.seeds:
        train(
            seed, options.runs / f"seed_{seed}", options.rounds or recipe.run.rounds, options.every, options.evaluated
        )
    without_noise = recipe.sampler.model_copy(update={"eta": 0.0, "final_std": 0.0})
    pictures = {
        name: images_of(recipe.model, sampler, options.images, options.runs / f"{name}.pt")
        for name, sampler in (("DDPM-10", recipe.sampler), ("DDIM-10", without_noise))
    }
    baselines, seeds = {name: measured(images_N1HW) for name, images_N1HW in pictures.items()}, []
    for folder in sorted(options.runs.glob("seed_*")):
        if not (folder / "model").is_dir():
            continue
        model = DdpmConfig(kind="ddpm", path=str(folder / "model"))
        images_N1HW = images_of(model, recipe.sampler, options.images, folder / f"images_{options.images}.pt")
        seeds.append(of_seed(int(folder.name.removeprefix("seed_")), folder, images_N1HW))
        if len(pictures) == 2:
            pictures[f"SFT-PG, {folder.name.replace('_', ' ')}"] = images_N1HW
    measures = floors(options.images, baselines["DDPM-10"]["share_5_to_9"])
    summary = {"images": options.images, "images_of_curve": options.evaluated, **measures, **baselines}
    write_study(
        "sft_pg",
        f"python -m benchmarks.studies.sft_pg {' '.join(sys.argv[1:])}".strip(),
        machine,
        summary,
        {"seeds": seeds},
        table(baselines, seeds),
    )
    lines = {name: numbers["frechet"] for name, numbers in baselines.items()} | {"real digits": measures["floor"]}
    picture(recipe, pictures, seeds, lines, RESULTS / "sft_pg.png")


if __name__ == "__main__":
    main()
