"""Rewards of images that lie on disk: the core of `memdiff score`.

Shapes: B images of one chunk, C channels, H W pixels.
"""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from memdiff.errors import ConfigError
from memdiff.rewards.backbones import of_one_backbone
from memdiff.rewards.reward import Reward
from memdiff.rewards.score import score_together
from memdiff.runtime.image_files import open_image
from memdiff.runtime.placement import place


@dataclass(frozen=True)
class ScoreRow:
    """The rewards of one image, by name."""

    image: Path
    prompt: str
    scores: Mapping[str, float] = field(default_factory=dict)


def read_image(path: Path) -> torch.Tensor:
    """C H W fp32 in [0, 1], three channels, turned upright. Raises ConfigError where it is no whole image."""
    try:
        with open_image(path) as image:
            pixels_HWC = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{path} is not an image that can be read ({type(error).__name__}: {reason})") from None
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).float() / 255


def score_images(
    images: Sequence[Path],
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    *,
    device: torch.device,
    chunk: int = 8,
    console: Console | None = None,
) -> list[ScoreRow]:
    """One row an image, in their order. `prompts` has one entry an image, or one for all; `console` shows progress.

    Raises ConfigError for a file that can't be read, RewardError for a reward that fails.
    """
    if len(prompts) == 1:
        prompts = list(prompts) * len(images)
    if len(prompts) != len(images):
        raise ConfigError(
            f"one prompt for all images or one for each is needed: {len(images)} images, {len(prompts)} given"
        )
    rows: list[ScoreRow] = []
    with _progress(console) as progress:
        task = progress.add_task("scoring", total=len(images))
        for batch_BCHW in _batches(images, chunk):
            first = len(rows)
            paths, texts = images[first : first + len(batch_BCHW)], prompts[first : first + len(batch_BCHW)]
            columns = _score_batch(place(batch_BCHW, device), texts, rewards)
            for index, (path, text) in enumerate(zip(paths, texts, strict=True)):
                rows.append(ScoreRow(path, text, {name: column[index] for name, column in columns.items()}))
            progress.advance(task, len(batch_BCHW))
    return rows


@torch.no_grad()
def _score_batch(
    images_BCHW: torch.Tensor, prompts: Sequence[str], rewards: Mapping[str, Reward]
) -> dict[str, list[float]]:
    names, columns = list(rewards), {}
    for numbers in of_one_backbone(list(rewards.values()), [len(images_BCHW)] * len(names)):
        together = [names[number] for number in numbers]
        scores_pB = score_together(
            [rewards[name] for name in together], images_BCHW, prompts, chunk=len(images_BCHW), names=together
        )
        columns |= dict(zip(together, scores_pB.tolist(), strict=True))
    return {name: columns[name] for name in names}


def _batches(images: Sequence[Path], chunk: int) -> Iterator[torch.Tensor]:
    """Neighbours of one size, at most `chunk` of them: only these are in memory."""
    waiting: list[torch.Tensor] = []
    for path in images:
        image_CHW = read_image(path)
        if waiting and (len(waiting) == chunk or image_CHW.shape != waiting[0].shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image_CHW)
    if waiting:
        yield torch.stack(waiting)


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=console is None)


def summary_table(rows: Sequence[ScoreRow]) -> Table:
    """Mean and std (over the images, ddof 0) of each reward, and over how many images."""
    table = Table()
    for heading in ("reward", "mean", "std", "images"):
        table.add_column(heading, justify="left" if heading == "reward" else "right")
    for name in rows[0].scores if rows else ():
        values = [row.scores[name] for row in rows]
        table.add_row(escape(name), f"{_mean(values):.4f}", f"{_std(values):.4f}", str(len(values)))
    return table


def score_table(rows: Sequence[ScoreRow]) -> Table:
    """A row an image."""
    names = list(rows[0].scores) if rows else []
    table = Table()
    table.add_column("image", overflow="fold")
    if len({row.prompt for row in rows}) > 1:
        table.add_column("prompt", overflow="ellipsis", max_width=40, no_wrap=True)
    for name in names:
        table.add_column(escape(name), justify="right")
    for row in rows:
        prompt = [escape(row.prompt)] if len(table.columns) > len(names) + 1 else []
        table.add_row(escape(str(row.image)), *prompt, *(f"{row.scores[name]:.4f}" for name in names))
    return table


def not_finite(rows: Sequence[ScoreRow]) -> list[str]:
    """A line for each reward that gave some image no finite number, which ends a run unless its part says otherwise."""
    lines = []
    for name in rows[0].scores if rows else ():
        bad = [row for row in rows if not math.isfinite(row.scores[name])]
        if bad:
            first = f"first {bad[0].image} ({bad[0].scores[name]})"
            count = f"{len(bad)} of {len(rows)} images"
            lines.append(f"{name} is not finite for {count}, {first}; by default a run ends there")
    return lines


def scores_json(rows: Sequence[ScoreRow]) -> str:
    """`{"images": [{"image", "prompt", "scores": {...}}], "mean": {...}, "std": {...}}`; what isn't finite is null."""
    names = list(rows[0].scores) if rows else []
    columns = {name: [row.scores[name] for row in rows] for name in names}
    document = {
        "images": [{"image": str(row.image), "prompt": row.prompt, "scores": _finite(row.scores)} for row in rows],
        "mean": _finite({name: _mean(values) for name, values in columns.items()}),
        "std": _finite({name: _std(values) for name, values in columns.items()}),
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _std(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean([(value - _mean(values)) ** 2 for value in values]))


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
