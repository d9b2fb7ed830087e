"""What is said, and what is not, where diffusers loads something."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from memdiff.errors import ConfigError


def no_pipeline(source: str, error: Exception, *, key: str = "model.path") -> ConfigError:
    """One line from diffusers' or transformers' many."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"{key} {source}: no pipeline could be loaded ({reason[:200]}). Give a diffusers pipeline folder, or "
        f"fetch a hub id first: hf download {source}"
    )


@contextmanager
def quiet_hub() -> Iterator[None]:
    """diffusers 0.42 gives huggingface_hub an argument that it ignores and warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
        yield
