"""Sample grids in the report: whole ones, the animation, and single images before and after with their words.

Shapes: H W pixels.
"""

import math
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from memdiff.errors import ConfigError
from memdiff.reporting.folder import Row, RunRecord, best_round, number
from memdiff.reporting.grid import GAP
from memdiff.reporting.pictures import embed_evolution, embed_image, embed_png, open_png

MOST_PAIRS, MOST_SCORES = 12, 3
FEW_PIXELS = 100  # a single image is about as wide in the page
LARGEST_TILE, LONGEST_TILE_BYTES = 256, 25_000  # pixels of a single image, bytes of its PNG


@dataclass(frozen=True)
class Picture:
    """A grid of samples as it stands in the page."""

    heading: str
    address: str
    alt: str


@dataclass(frozen=True)
class Pair:
    """The same noise under the first and the last weights: one image each, its text, what each part scored."""

    before: str
    after: str
    alt: str
    prompt: str
    scores: tuple[tuple[str, str], ...]
    is_small: bool  # enough to see its pixels


def sample_pictures(run: RunRecord, notes: list[str]) -> tuple[list[Picture], Picture | None]:
    """Grids of the first, the middle, the best and the last round, and the animation; what can't be read is noted."""
    if not run.samples:
        return [], None
    rounds = sorted(run.samples)
    words = [(rounds[0], "before training" if rounds[0] == 0 else "first"), (rounds[-1], "last")]
    if len(rounds) >= 3:
        words.append((rounds[len(rounds) // 2], "middle"))
    best = best_round(run.evaluations)
    if best in run.samples:
        words.append((best, "best"))
    pictures = []
    for index in sorted({index for index, _ in words}):
        try:
            address = embed_png(run.samples[index])
        except ConfigError as error:
            notes.append(str(error))
            continue
        marks = ", ".join(word for other, word in words if other == index)
        pictures.append(Picture(f"round {index} ({marks})", address, f"Grid of samples of round {index}"))
    try:
        address = embed_evolution(run.evolution, [run.samples[index] for index in rounds])
    except ConfigError as error:
        notes.append(str(error))
        return pictures, None
    return pictures, Picture("evolution", address, f"Animation of the samples from round {rounds[0]} to {rounds[-1]}")


def pairs(run: RunRecord) -> list[Pair]:
    """The first images of the first and the last grid, where both say what they are of."""
    rounds = [index for index in sorted(run.samples) if run.tiles.get(index)]
    if len(rounds) < 2:
        return []
    first, last = rounds[0], rounds[-1]
    texts = run.tiles[last].get("prompts")
    if run.tiles[first].get("prompts") != texts:
        return []
    prompts = texts if isinstance(texts, list) else []
    try:
        before, after = (tiles_of(run, index, len(prompts)) for index in (first, last))
    except ConfigError:
        return []
    shown = scores_by_tile(run.tiles[first], run.tiles[last], len(prompts), shares_in(run))
    return [
        Pair(
            embed_image(old, LONGEST_TILE_BYTES),
            embed_image(new, LONGEST_TILE_BYTES),
            f"Image {index + 1} of round {first} and of round {last}" + (f": {prompt}" if prompt else ""),
            prompt if isinstance(prompt, str) else "",
            scores,
            old.width < FEW_PIXELS,
        )
        for index, (old, new, prompt, scores) in enumerate(zip(before, after, prompts, shown, strict=False))
    ]


def tiles_of(run: RunRecord, index: int, count: int) -> list[Image.Image]:
    """The first images of a grid of `count`, cut out of it. Raises ConfigError."""
    grid = open_png(run.samples[index])
    if not count:
        return []
    across = min(count, math.ceil(math.sqrt(count)))
    down = math.ceil(count / across)
    width, height = (grid.width + GAP) // across - GAP, (grid.height + GAP) // down - GAP
    if width < 1 or height < 1:
        return []
    tiles = []
    for tile in range(min(count, MOST_PAIRS)):
        row, column = divmod(tile, across)
        left, top = column * (width + GAP), row * (height + GAP)
        image = grid.crop((left, top, left + width, top + height))
        image.thumbnail((LARGEST_TILE, LARGEST_TILE), Image.Resampling.LANCZOS)
        tiles.append(image)
    return tiles


def shares_in(run: RunRecord) -> set[str]:
    """Parts that say yes or no: of a single image they say little."""
    keys = {key for row in run.evaluations for key in row}
    return {key.removeprefix("evaluate/share/") for key in keys if key.startswith("evaluate/share/")}


def scores_by_tile(before: Row, after: Row, count: int, yes_or_no: set[str]) -> list[tuple[tuple[str, str], ...]]:
    """For each image, up to three parts with what they scored before and after; parts of degrees come first."""
    first, last = before.get("scores"), after.get("scores")
    if not isinstance(first, dict) or not isinstance(last, dict):
        return [()] * count
    names = [name for name in last if isinstance(last[name], list) and isinstance(first.get(name), list)]
    chosen = list(islice(sorted(names, key=lambda name: name in yes_or_no), MOST_SCORES))
    return [
        tuple((name, f"{_at(first[name], index)} → {_at(last[name], index)}") for name in chosen)
        for index in range(count)
    ]


def _at(scores: list[object], index: int) -> str:
    value = number(scores[index]) if index < len(scores) else math.nan
    return "n/a" if math.isnan(value) else f"{value:.3g}"
