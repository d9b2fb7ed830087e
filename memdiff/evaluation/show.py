"""What came out, shown: a table on the screen, eval.json, a page with the images side by side."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memdiff.errors import ConfigError
from memdiff.evaluation.evaluate import Outcome, Result, evaluate, finite, resize_words
from memdiff.evaluation.intervals import Estimate
from memdiff.evaluation.request import Evaluation
from memdiff.reporting.grid import BACKGROUND, INK, image_grid
from memdiff.reporting.page import render_page
from memdiff.reporting.pictures import embed_png
from memdiff.runtime.from_here import from_here, shell_word
from memdiff.runtime.image_files import open_image
from memdiff.training.run_folder import RunFolder

JSON_NAME, PICTURE, PAGE = "eval.json", "eval.png", "eval.html"
HERE = Path(__file__).parent
SHOWN, SHOWN_WITH_TEXT = 36, 16  # images of each source
LARGEST_TILE = 160  # pixels
WIDEST_LABEL = 112
MOST_DECIMALS = 6
HEADING, GAP = 28, 24  # pixels: above a source's grid, between two of them
LOWER_IS_BETTER = ("fid", "kid", "digits_frechet")


def evaluate_and_show(evaluation: Evaluation, gpus: int | None) -> Path:
    """Warnings on stderr, the table on the screen, files in the folder that is returned."""
    outcome = evaluate(evaluation, gpus)
    for warning in evaluation.warnings:
        sys.stderr.write(f"memdiff: warning: {warning}\n")
    Console().print(screen_table(outcome))
    return write(outcome)


def last_lines(folder: Path, evaluation: Evaluation, *, terminal: bool) -> list[str]:
    """The folder, for programs; on a terminal the page to open, and of a run, how it goes to the hub."""
    if not terminal:
        return [from_here(str(folder))]
    runs = [subject.source for subject in evaluation.subjects if RunFolder(Path(subject.source)).exists()]
    lines = [f"open {shell_word(folder / PAGE)}"]
    if runs:
        lines.append(f"next: memdiff push {shell_word(Path(runs[-1]))} you/NAME      (lists what would go to the hub)")
    return lines


def metric_names(outcome: Outcome) -> list[str]:
    """All metrics, in the order of the first source that has them."""
    return list(dict.fromkeys(name for result in outcome.results for name in result.metrics))


def cells_of(estimates: Sequence[Estimate | None], *, signed: bool = False) -> list[str]:
    """`0.593 [0.551, 0.634]` of each in a row, all with as many decimals: two digits that count of half the narrowest
    interval, or four of the largest value where there is none."""
    known = [each for each in estimates if each is not None and finite(each.value) is not None]
    ends = [(each.low, each.high) for each in known if finite(each.low) is not None and finite(each.high) is not None]
    halves = [(high - low) / 2 for low, high in ends if low is not None and high is not None and high > low]
    largest = max((abs(each.value) for each in known), default=0.0)
    digits, size = (1, min(halves)) if halves else (3, largest)
    decimals = min(MOST_DECIMALS, max(0, digits - math.floor(math.log10(size)))) if size > 0 else 0
    style = f"{'+' if signed else ''}.{decimals}f"
    return [_cell(each, style) for each in estimates]


def _cell(estimate: Estimate | None, style: str) -> str:
    if estimate is None or finite(estimate.value) is None:
        return "n/a"
    if finite(estimate.low) is None or finite(estimate.high) is None:
        return f"{estimate.value:{style}}"
    return f"{estimate.value:{style}} [{estimate.low:{style}}, {estimate.high:{style}}]"


def rows(outcome: Outcome) -> list[tuple[str, list[str]]]:
    """Name and a cell for each source; below a scored metric its difference to the first source, image by image."""
    first = outcome.results[0].subject.name
    differences = [outcome.differences(result) for result in outcome.results]
    table = [("images", [str(len(result.files)) for result in outcome.results])]
    for name in metric_names(outcome):
        mark = ", lower is better" if name in LOWER_IS_BETTER else ""
        table.append((name + mark, cells_of([result.metrics.get(name) for result in outcome.results])))
        if any(name in each for each in differences):
            shown = iter(cells_of([each[name] for each in differences if name in each], signed=True))
            cells = [next(shown) if name in each else "" for each in differences]
            table.append((f"  minus {first}", cells))
    return table


def has_intervals(outcome: Outcome) -> bool:
    """Whether a figure of the table has an interval."""
    return any(each.low is not None for result in outcome.results for each in result.metrics.values())


def screen_table(outcome: Outcome) -> Table:
    """A column for each source; brackets hold 95 % intervals."""
    table = Table(caption="[..]: 95 % interval over images" if has_intervals(outcome) else None, caption_justify="left")
    table.add_column("")
    for result in outcome.results:
        table.add_column(escape(result.subject.name), justify="right")
    for name, cells in rows(outcome):
        table.add_row(escape(name), *map(escape, cells))
    return table


def document(outcome: Outcome) -> dict[str, Any]:
    """All figures with where they come from: what eval.json holds."""
    evaluation = outcome.evaluation
    options = evaluation.options
    return {
        "environment": dict(outcome.environment),
        "seed": options.seed,
        "num_images": evaluation.num_images,
        "prompts": {
            "files": [{"file": str(f.path), "format": f.format, "sha256": f.sha256} for f in evaluation.prompt_files],
            "texts": [prompt.text for prompt in evaluation.prompts],
        },
        "rewards": {name: part.model_dump(mode="json") for name, part in evaluation.parts.items()},
        "real": {"source": options.real, "images": len(evaluation.real)} if options.real else None,
        "inception": asdict(outcome.inception) if outcome.inception else None,
        "detector": options.detector,
        "resize": resize_words(evaluation),
        "sources": [_source(outcome, result) for result in outcome.results],
        "warnings": list(evaluation.warnings),
    }


def _source(outcome: Outcome, result: Result) -> dict[str, Any]:
    subject = result.subject
    categories = result.categories(outcome.evaluation)
    return {
        "name": subject.name,
        "source": subject.source,
        "kind": "images" if subject.request is None else "model",
        "settings": None if subject.request is None else subject.request.model_dump(mode="json", exclude={"prompts"}),
        "metrics": _figures(result.metrics),
        "minus_first": _figures(outcome.differences(result)),
        "categories": {category: _figures(figures) for category, figures in categories.items()},
        "images": [
            {"image": str(file), "scores": {name: finite(scores[number]) for name, scores in result.scores.items()}}
            for number, file in enumerate(result.files)
        ],
    }


def _figures(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {"value": finite(each.value), "low": finite(each.low), "high": finite(each.high), "images": each.count}
        for name, each in estimates.items()
    }


def write(outcome: Outcome) -> Path:
    """eval.json, eval.png and eval.html into the folder that was asked for; returns it. Raises ConfigError."""
    folder = outcome.evaluation.options.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document(outcome), indent=2, allow_nan=False)
        for name in (JSON_NAME, PICTURE, PAGE):
            (folder / name).unlink(missing_ok=True)  # a link of that name is not written through
        (folder / JSON_NAME).write_text(text + "\n", encoding="utf-8")
        side_by_side(outcome).save(folder / PICTURE)
        (folder / PAGE).write_text(page(outcome, folder / PICTURE), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {folder} can't be written: {error.strerror}") from None
    return folder


def side_by_side(outcome: Outcome) -> Image.Image:
    """Each source's first images under its name: tile i of all of them came from the same noise and text."""
    with_text = any(text for result in outcome.results for text in result.subject.texts)
    most = SHOWN_WITH_TEXT if with_text else SHOWN
    grids = [_grid(result, most, with_text) for result in outcome.results]
    width = sum(grid.width for grid in grids) + GAP * (len(grids) - 1)
    canvas = Image.new("RGB", (width, HEADING + max(grid.height for grid in grids)), color=BACKGROUND)
    left, draw = 0, ImageDraw.Draw(canvas)
    for result, grid in zip(outcome.results, grids, strict=True):
        draw.text((left, 4), _fitting(result.subject.name, grid.width), fill=INK, font=ImageFont.load_default(16))
        canvas.paste(grid, (left, HEADING))
        left += grid.width + GAP
    return canvas


def _grid(result: Result, most: int, with_text: bool) -> Image.Image:
    files = result.files[:most]
    pictures = [open_image(file).convert("RGB") for file in files]
    width, height = pictures[0].size
    shrink = min(1.0, LARGEST_TILE / max(width, height))
    tile = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    tiles = np.stack([np.asarray(picture if picture.size == tile else _fit(picture, tile)) for picture in pictures])
    columns = round(most**0.5)
    if not with_text:
        return image_grid(tiles, columns=columns)
    return image_grid(tiles, columns, labels=list(result.subject.texts[:most]), smallest_tile=WIDEST_LABEL)


def _fit(picture: Image.Image, tile: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(picture, tile, Image.Resampling.LANCZOS)


def _fitting(text: str, width: int) -> str:
    font, text = ImageFont.load_default(16), text[:width]  # no letter is narrower than a pixel
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


def page(outcome: Outcome, picture: Path) -> str:
    """eval.html: one file without scripts."""
    evaluation = outcome.evaluation
    categories: Sequence[tuple[str, str, list[str]]] = _category_rows(outcome)
    return render_page(
        HERE / "page.html.j2",
        names=[result.subject.name for result in outcome.results],
        rows=rows(outcome),
        has_intervals=has_intervals(outcome),
        is_paired=sum(result.subject.request is not None for result in outcome.results) > 1,
        categories=categories,
        picture=embed_png(picture, longest_side=2048),
        warnings=evaluation.warnings,
        resize=resize_words(evaluation),
        sources=[(result.subject.name, result.subject.source, _how(result)) for result in outcome.results],
        environment=[(key, str(value)) for key, value in outcome.environment.items()],
        seed=evaluation.options.seed,
    )


def _category_rows(outcome: Outcome) -> list[tuple[str, str, list[str]]]:
    """Category, metric, a cell for each source."""
    each = [result.categories(outcome.evaluation) for result in outcome.results]
    return [
        (category, name, cells_of([figures.get(category, {}).get(name) for figures in each]))
        for category in each[0]
        for name in each[0][category]
    ]


def _how(result: Result) -> str:
    request = result.subject.request
    if request is None:
        return f"{len(result.files)} images as they lie there"
    sampler = request.sampler
    guidance = "" if sampler.guidance is None else f", guidance {sampler.guidance:g}"
    return f"sampled: {sampler.steps} steps, eta {sampler.eta:g}{guidance}, seed {request.seed}"
