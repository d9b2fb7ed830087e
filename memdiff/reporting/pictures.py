"""Sample grids as `data:` addresses, re-encoded so that only pixels reach the page."""

import base64
import io
import tempfile
from pathlib import Path

from PIL import Image, ImageSequence

from memdiff.errors import ConfigError
from memdiff.reporting.grid import write_evolution
from memdiff.runtime.image_files import open_image

LONGEST_SIDE = 1024  # pixels of an embedded grid: enough for a wide screen, a few hundred kB
LARGEST_PNG_BYTES = 400_000  # a longer PNG is embedded as JPEG instead
LARGEST_GIF_BYTES = 16 << 20


def open_png(path: Path) -> Image.Image:
    """The pixels of a grid, three channels. Raises ConfigError if it is no image."""
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"samples/{path.name} is not a readable PNG ({type(error).__name__}).") from error


def embed_png(path: Path, longest_side: int = LONGEST_SIDE) -> str:
    """A grid as a `data:` address, at most `longest_side` pixels a side. Raises ConfigError if it is no image."""
    image = open_png(path)
    if max(image.size) > longest_side:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return embed_image(image)


def embed_image(image: Image.Image, longest_bytes: int = LARGEST_PNG_BYTES) -> str:
    """As a `data:` address: PNG, or JPEG where that would be long."""
    content = _encode(image, "PNG")
    if len(content) <= longest_bytes:
        return _data_uri(content, "image/png")
    return _data_uri(_encode(image, "JPEG"), "image/jpeg")


def small_jpeg(path: Path, longest_side: int = LONGEST_SIDE) -> tuple[bytes, int, int]:
    """(a JPEG of an image, its width, its height), at most `longest_side` pixels a side. Raises OSError."""
    with open_image(path) as opened:
        image = opened.convert("RGB")
    if max(image.size) > longest_side:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return _encode(image, "JPEG"), image.width, image.height


def embed_evolution(gif: Path | None, pngs: list[Path]) -> str:
    """The animation as a `data:` address; made from the grids where the run has none or a broken one.

    Raises ConfigError if neither the file nor the grids give an animation of at most 16 MiB.
    """
    content = b"" if gif is None else _whole_gif(gif)
    if not content:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "evolution.gif"
            write_evolution(pngs, made)
            content = _whole_gif(made)
    if not content:
        raise ConfigError("the animation is longer than 16 MiB and is left out; see samples/evolution.gif.")
    return _data_uri(content, "image/gif")


def _whole_gif(path: Path) -> bytes:
    """The bytes of a GIF whose every frame decodes and which is short enough to embed, else none."""
    if path.stat().st_size > LARGEST_GIF_BYTES:
        return b""
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["GIF"]) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return b""
    return content


def _encode(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, quality=88, optimize=True)
    return stream.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
