"""Makes the embedded weights and cards: `python -m benchmarks.embedded_models.build [--only digits|text] [--out DIR]`.

Seeded; the same torch, machine and thread count give the same files. Other machines round differently and give
weights as good, not the same: the card says what this build measured.
"""

import json
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from diffusers import DDPMPipeline
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save

from benchmarks.embedded_models import measure, training
from benchmarks.embedded_models.build_text import build_text
from memdiff.digits.classifiers import load_classifier
from memdiff.digits.judge import judge_images
from memdiff.digits.paths import CLASSIFIERS, DIGITS_DDPM

COMMAND = "python -m benchmarks.embedded_models.build"
GRID_IMAGES = 160
GRID_COLUMNS = 20


def _train_all(out: Path, settings: dict[str, training.Settings], progress: Progress) -> dict[str, float]:
    """Train and store the three networks in fp16. Returns the seconds each took."""
    seconds = {}
    (out / CLASSIFIERS.name).mkdir(parents=True, exist_ok=True)
    for which in ("reward", "judge"):
        task = progress.add_task(which, total=settings[which].updates)
        started = time.perf_counter()
        net = training.train_classifier(which, settings[which], lambda task=task: progress.advance(task))
        seconds[which] = round(time.perf_counter() - started, 1)
        stored = {name: value.half().contiguous() for name, value in net.state_dict().items()}
        # Written by us, since save_file makes files that only their owner can read.
        (out / CLASSIFIERS.name / f"{which}.safetensors").write_bytes(save(stored))
    task = progress.add_task("ddpm", total=settings["ddpm"].updates)
    started = time.perf_counter()
    unet = training.train_ddpm(settings["ddpm"], lambda: progress.advance(task))
    seconds["ddpm"] = round(time.perf_counter() - started, 1)
    DDPMPipeline(unet=unet.half(), scheduler=training.new_scheduler()).save_pretrained(out / DIGITS_DDPM.name)
    for path in (out / DIGITS_DDPM.name).rglob("*.safetensors"):
        path.chmod(0o644)
    return seconds


def _measure_all(out: Path, settings: dict[str, training.Settings], num_samples: int) -> dict[str, Any]:
    """The card's figures, from the files just written; writes the grid of samples too."""
    classifiers = {which: load_classifier(which, out / CLASSIFIERS.name) for which in ("reward", "judge")}
    judge = classifiers["judge"]
    unet, scheduler = measure.load_ddpm(out / DIGITS_DDPM.name)
    samples_N1HW = measure.draw_samples(unet, scheduler, num_samples)
    shown_N1HW = samples_N1HW[: min(GRID_IMAGES, num_samples // GRID_COLUMNS * GRID_COLUMNS)]
    measure.grid_image(shown_N1HW, GRID_COLUMNS).save(out / "samples.png", optimize=True)
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in classifiers.items()}
    return {
        "parameters": {**parameters, "ddpm": sum(p.numel() for p in unet.parameters())},
        "held_out_accuracy": {name: measure.accuracy(net) for name, net in classifiers.items()},
        "sampler": {"scheduler": "DDIM", "steps": measure.STEPS, "eta": measure.ETA, "seed": measure.SAMPLE_SEED},
        "samples": asdict(judge_images(samples_N1HW, judge)),
        "samples_reward_and_judge_agree": float(
            (classifiers["reward"](samples_N1HW).argmax(1) == judge(samples_N1HW).argmax(1)).double().mean()
        ),
        "held_out_digits": asdict(judge_images(measure.real_digits("held_out")[0], judge)),
        "clip_sample": measure.clipping(out / DIGITS_DDPM.name, judge, min(num_samples, 400)),
        "nearest_training_digit_rms": measure.memorisation(samples_N1HW, judge, settings["ddpm"]),
    }


def build(out: Path, *, max_updates: int | None = None, num_samples: int = 1000) -> dict[str, Any]:
    """Train the three networks, write them under `out`, measure them, write `card.json`. Returns the card.

    `max_updates` cuts every training short, to try the path from end to end.
    """
    settings = {"reward": training.REWARD, "judge": training.JUDGE, "ddpm": training.DDPM}
    if max_updates is not None:
        settings = {name: replace(each, updates=min(each.updates, max_updates)) for name, each in settings.items()}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        seconds = _train_all(out, settings, progress)
    card = {
        "command": COMMAND,
        "settings": {name: asdict(each) for name, each in settings.items()},
        "versions": {name: version(name) for name in ("torch", "diffusers", "scikit-learn", "numpy")},
        "threads": torch.get_num_threads(),
        "seconds_training": seconds,
        "bytes": {
            str(path.relative_to(out)): path.stat().st_size
            for name in (CLASSIFIERS.name, DIGITS_DDPM.name)
            for path in sorted((out / name).rglob("*.safetensors"))
        },
        **_measure_all(out, settings, num_samples),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def main(
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = CLASSIFIERS.parent,
    only: Annotated[
        Literal["digits", "text"] | None,
        typer.Option(help="digits: the unconditional model and the classifiers. text: the text-to-image model."),
    ] = None,
) -> None:
    """Trains the embedded models and writes weights, grids and cards."""
    shown: dict[str, Any] = {}
    if only != "text":
        card = build(out)
        shown["digits"] = {name: card[name] for name in ("held_out_accuracy", "samples", "bytes")}
    if only != "digits":
        card = build_text(out)
        shown["text"] = {name: card[name] for name in ("samples", "recognition", "bytes")}
    typer.echo(json.dumps(shown, indent=2))


if __name__ == "__main__":
    typer.run(main)
