"""What is said, and what is not, where diffusers loads something."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memdiff.errors import ConfigError


def no_pipeline(source: str, error: Exception, *, key: str = "model.path", part: str | None = None) -> ConfigError:
    """One line from diffusers' or transformers' many; `part` is the network that was being read."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if not isinstance(error, OSError | ValueError) or not reason:  # whose text stands for itself
        reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
    said = f"{key} {source}: no pipeline could be loaded ({f'{part}: ' if part else ''}{reason[:200]})"
    if Path(source).is_dir():
        return ConfigError(f"{said}. Give a whole diffusers pipeline folder, or fetch its files again")
    return ConfigError(f"{said}. Give a diffusers pipeline folder, or fetch a hub id first: hf download {source}")


@contextmanager
def quiet_hub() -> Iterator[None]:
    """diffusers 0.42 gives huggingface_hub an argument that it ignores and warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
        yield
