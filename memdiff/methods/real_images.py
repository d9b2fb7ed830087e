"""The images that a model's are to be like: read once, checked, drawn by the counter-based generator.

Every pass through them is shuffled anew; passes follow each other without end. Which of them a position of a round gets
is a function of the seed, the round and the position: neither ranks nor a resumed run change it.

Shapes: M images there are, B positions of a round, C channels, H W pixels.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from memdiff.chain.noise import Stream, draw_order
from memdiff.errors import ConfigError
from memdiff.methods.sft_pg_config import RealDataset, RealDigits, RealFolder, RealImagesConfig
from memdiff.runtime.image_files import images_of, open_image

MODES = {1: "L", 3: "RGB"}  # PIL's names, by channels


class RealImages:
    """M images on the host: uint8 where they came from files, or fp32 in [0, 1]."""

    def __init__(self, images_MCHW: torch.Tensor) -> None:
        self.images_MCHW = images_MCHW

    def of(self, *, seed: int, round_number: int, num_images: int, positions: Sequence[int]) -> torch.Tensor:
        """Those of these positions of a round that has `num_images` of them: B C H W in [0, 1]. Rounds count from 1."""
        count = len(self.images_MCHW)
        slots = [max(round_number - 1, 0) * num_images + position for position in positions]
        chosen = [_pass_through(seed, slot // count, count)[slot % count] for slot in slots]
        images_BCHW = self.images_MCHW[torch.tensor(chosen)]
        return images_BCHW.float() / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW


@lru_cache(maxsize=4)
def _pass_through(seed: int, number: int, count: int) -> list[int]:
    return draw_order(seed=seed, stream=Stream.REAL_IMAGES, number=number, count=count)


def load_real_images(config: RealImagesConfig, shape: tuple[int, int, int]) -> RealImages:
    """What a recipe names, for a model of images C H W. Raises ConfigError in one line where they are of another kind.

    Images are neither resized nor converted: how that is done is part of what a model is measured against.
    """
    match config:
        case RealDigits():
            from memdiff.digits.scans import real_digits

            images_MCHW, _ = real_digits("train")
            _check(images_MCHW.shape[1:], shape, "the embedded digits")
            return RealImages(images_MCHW)
        case RealFolder():
            files = images_of(Path(config.path))
            return _stacked(((str(file), _opened(file)) for file in files), shape, config.path)
        case RealDataset():
            rows = _rows(config)
            named = ((f"image {number} of {config.name}", row[config.column]) for number, row in enumerate(rows))
            return _stacked(named, shape, f"{config.name}, split {config.split}")
        case _:
            assert_never(config)


def skeleton_real_images(shape: tuple[int, int, int]) -> RealImages:
    """One image without numbers, for plans."""
    return RealImages(torch.empty(1, *shape))


def _stacked(images: Iterable[tuple[str, Any]], shape: tuple[int, int, int], where: str) -> RealImages:
    pixels = []
    for name, image in images:
        if not isinstance(image, Image.Image):
            raise ConfigError(f"method.real: {name} is no image but {type(image).__name__}; name the column of images")
        pixels.append(_pixels(image, shape, name))
    if not pixels:
        raise ConfigError(f"method.real needs images to learn from, got none in {where}")
    return RealImages(torch.from_numpy(np.stack(pixels)))


def _opened(file: Path) -> Image.Image:
    try:
        with open_image(file) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"method.real: {file} can't be read as an image: {error}; remove or replace it") from None


def _pixels(image: Image.Image, shape: tuple[int, int, int], name: str) -> np.ndarray:
    """C H W uint8 of an image that has the model's size and mode."""
    mode = MODES.get(shape[0])
    if mode is None:
        raise ConfigError(f"method.real: images have 1 or 3 channels, and the model makes {shape[0]}")
    if image.mode != mode:
        raise ConfigError(
            f"method.real: {name} has pixel mode {image.mode}, and the model makes {mode}; convert the images to {mode}"
        )
    _check((shape[0], image.height, image.width), shape, name)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _check(got: Sequence[int], shape: tuple[int, int, int], name: str) -> None:
    if tuple(got) != shape:
        sizes = [f"{channels} x {height} x {width}" for channels, height, width in (tuple(got), shape)]
        raise ConfigError(
            f"method.real: {name} has {sizes[0]} (channels x height x width), and the model makes {sizes[1]}; "
            "bring the images to the model's size"
        )


def _rows(config: RealDataset) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "method.real.kind dataset needs the package datasets: pip install datasets; or give kind: folder"
        ) from None
    try:
        rows = datasets.load_dataset(config.name, split=config.split, revision=config.revision)
    except Exception as error:  # what it raises is of many libraries: its own, the hub's, pyarrow's
        raise ConfigError(f"method.real.name {config.name}, split {config.split} can't be read: {error}") from None
    if config.column not in rows.column_names:
        raise ConfigError(
            f"method.real.column must be one of {', '.join(rows.column_names)} in {config.name}, got {config.column}"
        )
    return rows
