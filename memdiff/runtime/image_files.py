"""Image files in folders: what `memdiff sample` writes, and what is taken from a folder to be scored. No torch."""

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memdiff.errors import ConfigError
from memdiff.runtime.numbered import name_of, number_of, numbered
from memdiff.runtime.small_files import own_bytes

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SETTINGS = "settings.json"
MOST_SETTINGS_BYTES = 128 * 2**20  # all prompts of a file stand in it
GRID = "grid.png"
IMAGE = "image_"  # and its number
EVALUATED = re.compile(r"round_\d{6}\.png")  # a grid of many images, in the samples/ of a run


def open_image(path: Path) -> "ImageFile":
    """Pillow's image of a file in a format that it decodes itself: it starts Ghostscript for others, such as EPS.

    By its first bytes, whatever its name says. Raises what `Image.open` does, UnidentifiedImageError for other formats.
    """
    from PIL import Image

    return Image.open(path, formats=FORMATS)


def sampled_file(folder: Path, image: int) -> Path:
    """The PNG of image number `image` in a folder of `memdiff sample`."""
    return folder / name_of(IMAGE, image, ".png")


def sampled_images(folder: Path) -> list[Path]:
    """The images that `memdiff sample` wrote, by their number; not its grid, and nothing that others put there."""
    return [file for file in numbered(folder, IMAGE, ".png").values() if file.is_file()]


def sample_settings(folder: Path) -> dict[str, Any] | None:
    """What `memdiff sample` wrote beside its images; None in other folders, whatever settings.json they hold."""
    file = folder / SETTINGS
    if not file.is_file():
        return None
    try:
        settings = json.loads(own_bytes(file, within=folder, most_bytes=MOST_SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError, ConfigError):
        return None
    ours = isinstance(settings, dict) and {"num_images", "sampler", "prompts"} <= settings.keys()
    return settings if ours and isinstance(settings["prompts"], list) else None


def images_of(folder: Path) -> list[Path]:
    """The images of a folder, not of folders inside it, by name. No hidden files, no grids of images.

    Of a folder that `memdiff sample` wrote, its images alone.
    """
    if sample_settings(folder) is not None:
        return sampled_images(folder)
    shown = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in shown if _is_image(file) and not _is_grid(file))


def find_images(sources: Sequence[str]) -> list[Path]:
    """The images of folders (`images_of`), of globs (no grids) and single files (any); sorted in each, none twice.

    Raises ConfigError naming the first source that gives none.
    """
    paths: dict[Path, None] = {}
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = images_of(path)
        else:
            matches = glob.glob(str(path), recursive=True)  # noqa: PTH207  Path.glob takes no absolute pattern
            files = sorted(match for match in map(Path, matches) if _is_image(match) and not _is_grid(match))
        if not files:
            raise ConfigError(
                f"no image in {source}; give a folder, a glob or files that end in {', '.join(SUFFIXES)}. A run's own "
                "samples/ holds grids of its evaluations: memdiff sample RUN makes images"
            )
        paths.update(dict.fromkeys(files))
    return list(paths)


def prompts_beside(images: Sequence[Path]) -> list[str]:
    """What each image was made from, as settings.json beside it says: image i has prompt i mod P. Empty: unknown."""
    known: dict[Path, list[str]] = {}
    prompts = []
    for image in images:
        if image.parent not in known:
            known[image.parent] = [str(text) for text in (sample_settings(image.parent) or {}).get("prompts", ())]
        texts, number = known[image.parent], number_of(image, IMAGE, ".png")
        prompts.append(texts[number % len(texts)] if number is not None and texts else "")
    return prompts


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES


def _is_grid(path: Path) -> bool:
    if path.name == GRID:
        return sample_settings(path.parent) is not None
    of_run = path.parent.name == "samples" and (path.parent.parent / "config.yaml").is_file()
    return of_run and EVALUATED.fullmatch(path.name) is not None
