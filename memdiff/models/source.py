"""What is said, and what is not, where diffusers loads something."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DiffusionPipeline

from memdiff.errors import ConfigError
from memdiff.models.scheduler import ddim_scheduler


def no_pipeline(source: str, error: Exception, *, key: str = "model.path", part: str | None = None) -> ConfigError:
    """One line from diffusers' or transformers' many; `part` is the network that was being read."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if not isinstance(error, OSError | ValueError) or not reason:  # whose text stands for itself
        reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
    said = f"{key} {source}: no pipeline could be loaded ({f'{part}: ' if part else ''}{reason[:200]})"
    if Path(source).is_dir():
        return ConfigError(f"{said}. Give a whole diffusers pipeline folder, or fetch its files again")
    return ConfigError(
        f"{said}. It is no folder here: give a pipeline folder, or fetch a hub id first: hf download {source}"
    )


@contextmanager
def quiet_hub() -> Iterator[None]:
    """diffusers 0.42 gives huggingface_hub an argument that it ignores and warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
        yield


def read_config(network: Any, source: str, *, key: str = "model.path", part: str | None = None, **where: Any) -> Any:
    """Constructor arguments of a diffusers network, from its config. Raises ConfigError."""
    try:
        with quiet_hub():
            config_values = network.load_config(source, subfolder=part, **where)
    except (OSError, ValueError, KeyError) as error:
        raise no_pipeline(source, error, key=key) from None
    return {key: value for key, value in dict(config_values).items() if not key.startswith("_")}


def read_scheduler(source: str, revision: str | None) -> DDIMScheduler:
    """A pipeline's scheduler as DDIM. Raises ConfigError."""
    try:
        with quiet_hub():
            index: Any = DiffusionPipeline.load_config(source, revision=revision)
        kind = getattr(diffusers, index["scheduler"][1])
        return ddim_scheduler(kind.from_pretrained(source, subfolder="scheduler", revision=revision))
    except (OSError, ValueError, KeyError) as error:
        raise no_pipeline(source, error) from None
