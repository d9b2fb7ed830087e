"""The text-to-image part of the embedded models: trains it, measures it, writes its card and its grid."""

import json
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.embedded_models import measure_text, text_training
from benchmarks.embedded_models.measure import grid_image
from benchmarks.embedded_models.measure_text import FREE_PROMPTS, GUIDANCES, STEPS, Drawing
from benchmarks.embedded_models.text_model import assemble, new_tokenizer, save_pipeline
from benchmarks.embedded_models.text_prompts import WORDS
from benchmarks.embedded_models.training import Settings
from memdiff.digits.classifiers import load_classifier
from memdiff.digits.paths import DIGITS_TEXT

COMMAND = "python -m benchmarks.embedded_models.build --only text"
CARD_NAME, GRID_NAME = "card_text.json", "samples_text.png"
MAIN_GUIDANCE = 5.0
GRID_ROWS_PER_STYLE = 4


def train_text(out: Path, settings: dict[str, Settings], progress: Progress) -> dict[str, float]:
    """Train the parts and write the pipeline folder under `out`. Returns the seconds each took."""
    task = progress.add_task("vae", total=settings["vae"].updates)
    started = time.perf_counter()
    vae = text_training.train_vae(settings["vae"], lambda: progress.advance(task))
    seconds = {"vae": round(time.perf_counter() - started, 1)}
    task = progress.add_task("text", total=settings["text"].updates)
    started = time.perf_counter()
    tokenizer = new_tokenizer()
    trained = text_training.train_conditioned(vae, tokenizer, settings["text"], lambda: progress.advance(task))
    seconds["text"] = round(time.perf_counter() - started, 1)
    save_pipeline(assemble(tokenizer, trained.text_encoder, vae, trained.unet), out / DIGITS_TEXT.name)
    return seconds


def measure_text_model(
    out: Path, settings: dict[str, Settings], each: int, all_steps: tuple[int, ...] = STEPS, copies: int = 8
) -> dict[str, Any]:
    """The card's figures, from the folder just written; writes the grid of samples too.

    `each` samples of every digit and style at guidance 5 and the first number of steps; a third as many at each
    guidance with each number of steps. `copies` augmented versions of each training picture are searched for copies.
    """
    main = Drawing(MAIN_GUIDANCE, all_steps[0])
    pipeline = measure_text.load_text(out / DIGITS_TEXT.name)
    judge = load_classifier("judge")
    prompts, digits_N, styles = measure_text.wishes(each)
    samples_N3HW = measure_text.draw_pictures(pipeline, prompts, main)
    rows = min(each, GRID_ROWS_PER_STYLE)
    # wishes go style by style, digit by digit: a row of the grid takes one sample of each digit.
    shown = samples_N3HW.mean(dim=1, keepdim=True).unflatten(0, (-1, 10, each))[:, :, :rows].transpose(1, 2)
    grid_image(shown.flatten(0, 2), columns=10).save(out / GRID_NAME, optimize=True)

    few, few_digits_N, _ = measure_text.wishes(max(1, each // 3))
    recognition = {
        f"guidance {guidance}, {steps} steps": measure_text.recognition(
            measure_text.draw_pictures(pipeline, few, Drawing(guidance, steps)), few_digits_N, judge
        )
        for guidance in GUIDANCES
        for steps in all_steps
    }
    noisy_N3HW = measure_text.draw_pictures(pipeline, few, replace(main, eta=1.0))
    free = [(text, digit) for text, digit in FREE_PROMPTS for _ in range(each)]
    free_N3HW = measure_text.draw_pictures(pipeline, [text for text, _ in free], main)
    free_digits_N = torch.tensor([digit for _, digit in free])
    held_out_NCHW, held_out_digits_N = measure_text.training_pictures("held_out", settings["text"], 0)
    networks = {"vae": pipeline.vae, "text_encoder": pipeline.text_encoder, "unet": pipeline.unet}
    return {
        "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()},
        "words": len(WORDS),
        "sampler": {"scheduler": "DDIM", **asdict(main)},
        "samples": {
            "num_images": len(samples_N3HW),
            **measure_text.recognition(samples_N3HW, digits_N, judge),
            "named_of_digit": measure_text.by_digit(samples_N3HW, digits_N, judge),
            "ink": measure_text.ink(samples_N3HW, styles),
        },
        "recognition": {"num_images_each": len(few), **recognition},
        "recognition_eta_1": measure_text.recognition(noisy_N3HW, few_digits_N, judge),
        "free_prompts": {
            "num_images": len(free),
            **measure_text.recognition(free_N3HW, free_digits_N, judge),
            "named_of_digit": measure_text.by_digit(free_N3HW, free_digits_N, judge),
        },
        "held_out_pictures": {
            "num_images": len(held_out_NCHW),
            **measure_text.recognition(held_out_NCHW, held_out_digits_N, judge),
        },
        "nearest_training_picture_rms": measure_text.memorisation(samples_N3HW, settings["text"], copies),
        "autoencoding": measure_text.autoencoding(pipeline, settings["text"]),
    }


def build_text(
    out: Path, *, max_updates: int | None = None, each: int = 6, all_steps: tuple[int, ...] = STEPS, copies: int = 8
) -> dict[str, Any]:
    """Train the text-to-image model, write it under `out`, measure it, write `card_text.json`. Returns the card.

    `max_updates` cuts both trainings short, `all_steps` the sampling and `copies` the search, to try the path from end
    to end.
    """
    settings = {"vae": text_training.VAE, "text": text_training.TEXT}
    if max_updates is not None:
        settings = {name: replace(one, updates=min(one.updates, max_updates)) for name, one in settings.items()}
    out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        seconds = train_text(out, settings, progress)
    return write_card(out, settings, seconds, measure_text_model(out, settings, each, all_steps, copies))


def write_card(
    out: Path, settings: dict[str, Settings], seconds: dict[str, float], measured: dict[str, Any]
) -> dict[str, Any]:
    """Write `card_text.json`: how the folder under `out` was made, its sizes, and what was measured."""
    folder = out / DIGITS_TEXT.name
    card = {
        "command": COMMAND,
        "settings": {name: asdict(each) for name, each in settings.items()},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "scikit-learn", "numpy")},
        "threads": torch.get_num_threads(),
        "seconds_training": seconds,
        "bytes": {str(path.relative_to(out)): path.stat().st_size for path in sorted(folder.rglob("*.safetensors"))},
        **measured,
    }
    (out / CARD_NAME).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card
