"""A checkpoint's manifest: sizes and checksums of its files, written last, and what is wrong where they don't verify.

A state that a run can't go on from is a defect, too.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from memdiff.runtime.small_files import own_bytes

MANIFEST = "MANIFEST.json"
STATE = "state.json"
NUMBERS = ("round", "world_size")  # of a state
MAPPINGS = ("statistics", "objective", "evaluate_statistics", "first")


def round_of(folder: Path) -> int | None:
    """Of the state that lies in it; None where that can't be read."""
    try:
        return int(json.loads(own_bytes(folder / STATE, within=folder))["round"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def write_manifest(folder: Path) -> None:
    """Of all that lies in the folder, on the disk when this returns."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for path in files:
        sync(path)
        entries[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(entries, indent=2))
    sync(manifest)
    sync(folder)


def defect_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where it is whole."""
    try:
        entries = json.loads(own_bytes(folder / MANIFEST, within=folder))
        if not isinstance(entries, dict) or not entries:
            return f"{MANIFEST} lists nothing"
        for name, entry in entries.items():
            defect = _defect_of_file(folder, name, entry)
            if defect is not None:
                return defect
        state = json.loads(own_bytes(folder / STATE, within=folder))
        missing = [key for key in NUMBERS if not isinstance(state.get(key), int)]
        missing += [key for key in MAPPINGS if not isinstance(state.get(key, {}), dict)]
        return f"{STATE} has no usable {missing[0]}" if missing else None
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} or {STATE} can't be read ({type(error).__name__}: {error})"


def _defect_of_file(folder: Path, name: str, entry: Any) -> str | None:
    file = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or file.is_symlink():
        return f"{MANIFEST} names {name!r}, which lies elsewhere"
    if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
        return f"{name} is no file of its own"
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"{name} has {size} bytes in the place of {entry['bytes']}"
    return f"{name} was altered (its SHA-256 is another)" if _sha256(file) != entry["sha256"] else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
