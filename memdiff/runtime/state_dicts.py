"""Tensors by name, held to the network that they are for: all of them, in its shapes, or one line that names them."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from memdiff.errors import ConfigError, MemdiffError

NAMED = 3  # how many keys an error names
MOST_REPEATS = 8  # of the bytes of a file: weights that layers share are there once, and count for each


@contextmanager
def told_in_one_line(source: str) -> Iterator[None]:
    """What damaged or foreign files lead to, whatever exception that is, as ConfigError.

    `source` is what a person gave.
    """
    try:
        yield
    except (MemdiffError, AssertionError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"{source} can't be used ({type(error).__name__}: {reason}); fetch its files again"
        ) from error


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, on the host. Raises ConfigError in one line where it is no whole file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"{path} is not a whole safetensors file ({type(error).__name__}: {reason}); fetch it again"
        ) from None


def read_pickle(path: Path, *, mmap: bool = False) -> Any:
    """What torch saved: tensors in plain containers; nothing else in the file is made or run. Raises whatever its bytes
    lead to. Without torch's warnings of files and tensors that whoever calls this refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)


def refuse_repeated_numbers(path: Path, tensors: Iterable[torch.Tensor]) -> None:
    """Raises ConfigError where the tensors of a pickle are more than the file can hold.

    A tensor may be a view that repeats a few numbers, so that a file of a kilobyte would fill the memory.
    """
    held, claimed = path.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if claimed > MOST_REPEATS * held:
        raise ConfigError(f"{path} is a file of {held} bytes, and its tensors would take {claimed}; fetch it again")


def refuse_other_weights(
    source: str,
    network: str,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    unlike: Iterable[str] = (),
) -> None:
    """Raises ConfigError in one line where anything is amiss: how many keys of each kind, and the first of them.

    `source` is what a person gave, `network` the class that it was read for; `unlike` are words, not only keys.
    """
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape or kind", unlike))
    named = [(what, list(keys)) for what, keys in problems]
    summary = "; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in named if keys)
    if summary:
        raise ConfigError(f"{source} does not hold the weights of {network}: {summary}; fetch its files again")


def another_shape(key: str, got: Iterable[int], want: Iterable[int]) -> str:
    """What an error says of a tensor whose shape is not the network's."""
    return f"{key} is {tuple(got)}, should be {tuple(want)}"


def assign_strictly(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Makes `tensors` the module's parameters and buffers, without a copy; a module on the meta device gets real ones.

    The tensors keep their dtype. Raises ConfigError in one line that names `source` and the first keys that are
    missing, unexpected, or of another shape or kind (integers for floats).
    """
    wanted = module.state_dict()
    refuse_other_weights(
        source,
        type(module).__name__,
        missing=[key for key in wanted if key not in tensors],
        unexpected=[key for key in tensors if key not in wanted],
        unlike=[_difference(key, tensors[key], wanted[key]) for key in wanted if _differs(key, tensors, wanted)],
    )
    module.load_state_dict(tensors, strict=True, assign=True)


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")


def _differs(key: str, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    if key not in tensors:
        return False
    got, want = tensors[key], wanted[key]
    return got.shape != want.shape or got.is_floating_point() != want.is_floating_point()


def _difference(key: str, got: torch.Tensor, want: torch.Tensor) -> str:
    if got.shape != want.shape:
        return another_shape(key, got.shape, want.shape)
    return f"{key} is {got.dtype}, should be {want.dtype}"
