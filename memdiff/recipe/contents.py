"""What lies behind the paths of a recipe: fingerprints by which a resumed run knows that it is still there. No torch.

Files up to 1 MiB are read whole. Of larger ones a sample is, so that a folder of gigabytes takes a few milliseconds:
the size, the first and the last 64 KiB (the end of torch's own format holds a checksum of every tensor), 64 places
between them, and in safetensors both ends of every tensor: training changes all of a tensor's numbers. What changes
neither of these is not seen, nor what a Python file imports, nor a hub id without a `revision` whose branch moves on.

Of a folder of images, which may hold hundreds of thousands, names and sizes of all count, and the content of as many as
4,096 of them, evenly spread by name: a second or two at most.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from memdiff.engine.ds_config import agreed_values, read_user_file
from memdiff.errors import ConfigError
from memdiff.methods.sft_pg_config import RealFolder
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.image_files import images_of
from memdiff.runtime.weight_headers import Header, read_header

Contents = dict[str, dict[str, str]]  # dotted key -> file below its path -> fingerprint

PATH_KEYS = ("file", "path", "config", "vae", "tokenizer", "head")  # of a recipe's sections, wherever they stand
READ = (".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # of a folder, two levels deep
DS_CONFIG = "--ds-config"
# Of a DeepSpeed file: what is measured, said or laid out in memory. The recipe's memory section is as free.
FREE = {
    "zero_optimization", "steps_per_print", "wall_clock_breakdown", "dump_state", "comms_logger", "flops_profiler",
    "tensorboard", "wandb", "csv_monitor", "comet", "aio", "nebula", "checkpoint", "memory_breakdown", "timers",
}  # fmt: skip
MOST_IMAGES = 4096
WHOLE_BYTES, ENDS_BYTES, PLACES, PLACE_BYTES = 1 << 20, 1 << 16, 64, 1 << 12


def contents_of(recipe: Recipe, ds_config: Path | None = None) -> Contents:
    """Fingerprints of every local file and folder that a recipe names, and of a DeepSpeed file. Raises ConfigError."""
    deciding = {} if ds_config is None else read_user_file(ds_config, agreed_values(recipe.optimizer))
    deciding = {key: value for key, value in deciding.items() if key not in FREE}
    contents = {
        key: image_fingerprints(Path(path)) if of_images else fingerprints(Path(path))
        for key, path, of_images in _paths(recipe)
    }
    return contents | {DS_CONFIG: {"": _hash(json.dumps(deciding, sort_keys=True).encode())}}


def paths_of(recipe: Recipe) -> list[str]:
    """Every local file and folder that a recipe names."""
    return [path for _, path, _ in _paths(recipe)]


def changed_contents(before: Mapping[str, Any], after: Contents) -> list[str]:
    """What differs, as a person would look for it: the key and the file. A key that `before` lacks is not compared."""
    changes = []
    for key, files in after.items():
        known = before.get(key)
        if not isinstance(known, Mapping) or known == files:
            continue
        absent = object()  # what was stored may hold null
        name = next(name for name in sorted({*known, *files}) if known.get(name, absent) != files.get(name, absent))
        changes.append(f"the content of {key}{f' ({name})' if name else ''}")
    return changes


def fingerprints(path: Path) -> dict[str, str]:
    """Of a file, or of those files in a folder that models are read from. Empty where there is neither."""
    if path.is_file():
        return {path.name: _fingerprint(path)}
    files = sorted((*path.glob("*"), *path.glob("*/*")))
    return {
        str(file.relative_to(path)): _fingerprint(file)
        for file in files
        if file.suffix in READ and file.is_file() and not any(part[0] == "." for part in file.relative_to(path).parts)
    }


def image_fingerprints(folder: Path) -> dict[str, str]:
    """Of the images in a folder: of each file where they are few, else of what the module says. Empty: no folder."""
    if not folder.is_dir():
        return {}
    images = images_of(folder)
    prints = {image.name: _fingerprint(image) for image in images[:: -(-len(images) // MOST_IMAGES) or 1]}
    if len(prints) < len(images):
        sizes = hashlib.sha256()
        for image in images:
            sizes.update(f"{image.name}/{image.stat().st_size}\n".encode())  # no name holds a slash
        # The star sorts it before the files: of a file more or less this is what is named.
        prints[f"*: names and sizes of {len(images)} images"] = sizes.hexdigest()
    return prints


def _paths(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """Dotted key and path of everything local, and whether it is a folder of images.

    Paths were made absolute when the recipe was read; hub ids stay.
    """
    for key, value in section:
        for number, entry in enumerate(value) if isinstance(value, tuple) else [("", value)]:
            dotted = f"{prefix}{key}" if number == "" else f"{prefix}{key}.{number}"
            if isinstance(entry, BaseModel):
                yield from _paths(entry, f"{dotted}.")
            elif key in PATH_KEYS and isinstance(entry, str) and Path(entry).is_absolute():
                yield dotted, entry, isinstance(section, RealFolder)


def _fingerprint(path: Path) -> str:
    try:
        header = _header(path) if path.suffix == ".safetensors" else None
        with path.open("rb") as file:
            return _fingerprint_of(file, path.stat().st_size, header)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; the recipe names it or its folder") from None


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except ValueError:
        return None  # not safetensors: whoever loads it says so


def _fingerprint_of(file: IO[bytes], size: int, header: Header | None) -> str:
    if size <= WHOLE_BYTES:
        return _hash(file.read())
    sample = hashlib.sha256(str(size).encode())
    for start, length in _sampled(size, header):
        file.seek(start)
        sample.update(file.read(length))
    return sample.hexdigest()


def _sampled(size: int, header: Header | None) -> Iterator[tuple[int, int]]:
    """Start and length of what is read of a large file."""
    yield 0, ENDS_BYTES
    yield size - ENDS_BYTES, ENDS_BYTES
    yield from ((size * place // PLACES, PLACE_BYTES) for place in range(1, PLACES))
    if header is not None:
        ends = {at for tensor in header.tensors.values() for at in (tensor.start, tensor.end)}
        yield from ((max(header.size, at - 32), 64) for at in sorted(ends))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
