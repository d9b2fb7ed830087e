"""Grids of images, and the animation of a grid over the rounds.

Shapes: N images, H W pixels, C channels (1 grey or 3 RGB).
"""

import math
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from memdiff.errors import ConfigError
from memdiff.runtime.image_files import open_image

SMALLEST_TILE = 64  # pixels: below this a tile can't be judged by eye
GAP = 2  # pixels between tiles
LONGEST_SIDE = 1024  # pixels of a GIF frame: a larger grid makes files of tens of MB
MOST_FRAMES = 60
SECONDS_PER_FRAME = 0.4
SECONDS_LAST_FRAME = 2.0
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)


def image_grid(
    images_NHWC: np.ndarray,
    columns: int | None = None,
    labels: list[str] | None = None,
    smallest_tile: int = SMALLEST_TILE,
) -> Image.Image:
    """Lay uint8 images out row by row, `columns` wide (None: about square), each over its label where there are any.

    Tiles smaller than `smallest_tile` pixels are enlarged by a whole factor without smoothing, so that each pixel of a
    tiny image stays a sharp square. Labels are cut to the width of a tile. Raises ValueError on another shape or type.
    """
    if images_NHWC.ndim != 4 or images_NHWC.shape[3] not in (1, 3) or images_NHWC.dtype != np.uint8:
        raise ValueError(f"images must be N H W C uint8 with C 1 or 3, got {images_NHWC.dtype} {images_NHWC.shape}")
    number, height, width, channels = images_NHWC.shape
    if number == 0 or height == 0 or width == 0:
        raise ValueError(f"a grid needs at least one pixel, got shape {images_NHWC.shape}")
    if labels is not None and len(labels) != number:
        raise ValueError(f"labels must be one an image ({number}), got {len(labels)}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")

    across = min(number, columns or math.ceil(math.sqrt(number)))
    factor = max(1, math.ceil(smallest_tile / min(height, width)))
    tiles_NHWC = np.broadcast_to(images_NHWC, (number, height, width, 3)) if channels == 1 else images_NHWC
    tile_height, tile_width = height * factor, width * factor
    font_size = max(10, min(18, tile_width // 8))
    margin = 0 if labels is None else math.ceil(1.6 * font_size)
    rows = math.ceil(number / across)
    grid = Image.new(
        "RGB", (across * (tile_width + GAP) - GAP, rows * (tile_height + margin + GAP) - GAP), color=BACKGROUND
    )
    for index in range(number):
        row, column = divmod(index, across)
        left, top = column * (tile_width + GAP), row * (tile_height + margin + GAP)
        tile = Image.fromarray(np.ascontiguousarray(tiles_NHWC[index]))
        grid.paste(tile.resize((tile_width, tile_height), Image.Resampling.NEAREST), (left, top))
        if labels is not None:
            box = (left, top + tile_height, left + tile_width, top + tile_height + margin)
            _write_centred(grid, labels[index], box, font_size)
    return grid


def write_evolution(pngs: list[Path], gif: Path, labels: list[str] | None = None) -> None:
    """Write an endless GIF of the given grids, oldest first, with the round in a margin below; the last frame is held.

    labels: one a file; None takes the number from a name such as `round_000010.png`. Frames are shrunk to at most 1024
    pixels a side; of more than 60 files 60 are taken, evenly, the first and the last among them. The file appears whole
    or not at all. Raises ConfigError if there is no file or one is not an image.
    """
    if not pngs:
        raise ConfigError(f"no images to animate for {gif}. Sample at least one grid first.")
    if labels is not None and len(labels) != len(pngs):
        raise ValueError(f"labels must be one a file ({len(pngs)}), got {len(labels)}")
    names = labels if labels is not None else [round_label(path) for path in pngs]
    frames = [_frame(pngs[index], names[index]) for index in spread(len(pngs), MOST_FRAMES)]
    width, height = max(frame.width for frame in frames), max(frame.height for frame in frames)
    frames = [_on_canvas(frame, width, height) for frame in frames]

    durations = [round(1000 * SECONDS_PER_FRAME)] * len(frames)
    durations[-1] = round(1000 * SECONDS_LAST_FRAME)
    part = gif.with_name(gif.name + ".tmp")
    part.unlink(missing_ok=True)
    frames[0].save(part, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    part.replace(gif)


def round_label(path: Path) -> str:
    """`round 10` for `round_000010.png`; the bare name for any other file."""
    match = re.fullmatch(r"round_(\d+)", path.stem)
    return f"round {int(match[1])}" if match else path.stem


def spread(number: int, at_most: int) -> list[int]:
    """Indices of at most `at_most` (>= 2) of `number` items, evenly spaced, first and last included."""
    if number <= at_most:
        return list(range(number))
    return [round(index * (number - 1) / (at_most - 1)) for index in range(at_most)]


def _frame(path: Path, label: str) -> Image.Image:
    try:
        with open_image(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"{path} is not a readable image ({type(error).__name__}). Remove it and try again."
        ) from error
    if max(image.size) > LONGEST_SIDE:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    font_size = max(12, min(40, image.width // 18))
    margin = math.ceil(1.8 * font_size)
    frame = Image.new("RGB", (image.width, image.height + margin), color=BACKGROUND)
    frame.paste(image, (0, 0))
    _write_centred(frame, label, (0, image.height, image.width, image.height + margin), font_size)
    return frame


def _on_canvas(frame: Image.Image, width: int, height: int) -> Image.Image:
    """The frame at the top left of a white canvas: frames of a GIF share one size."""
    if frame.size == (width, height):
        return frame
    canvas = Image.new("RGB", (width, height), color=BACKGROUND)
    canvas.paste(frame, (0, 0))
    return canvas


def _write_centred(image: Image.Image, text: str, box: tuple[int, int, int, int], font_size: int) -> None:
    """Draw one line of text in the middle of a box, cut to the box's width."""
    left, top, right, bottom = box
    font = ImageFont.load_default(font_size)
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]
    shown = line
    while shown and font.getlength(shown) > right - left:
        line = line[:-1]
        shown = line + "..." if line else ""
    ImageDraw.Draw(image).text(((left + right) / 2, (top + bottom) / 2), shown, fill=INK, font=font, anchor="mm")
