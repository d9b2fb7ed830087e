"""What a saved model has beside its weights: a card, the base's name, files that others may read. No torch."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memdiff.models.config import base_of
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.card import write_card
from memdiff.reporting.folder import Row
from memdiff.runtime.small_files import free_of_others

PEFT_CONFIG = "adapter_config.json"
PARTIAL = ".tmp"


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A new folder, whose files come into `folder` once all are written; else it goes, and `folder` is as it was.

    Writing takes minutes and may fail, and what was there may be the best model of a run. What people put there stays;
    links are replaced, not followed. Raises OSError.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    _remove(partial)
    try:
        partial.mkdir(parents=True)
        yield partial
        free_of_others(folder)
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            place = folder / file.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    """Whatever it is; a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def describe_model(
    folder: Path, recipe: Recipe, rows: list[Row], environment: dict[str, Any], *, trained_round: int
) -> None:
    """Card, base's name and modes. Raises OSError; the weights are whole before and after."""
    for config in sorted(folder.rglob(PEFT_CONFIG)):
        content = json.loads(config.read_text(encoding="utf-8"))
        content["base_model_name_or_path"] = base_of(recipe.model)
        with beside(config.parent) as partial:  # adapters without it can't be loaded
            (partial / config.name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_card(folder, recipe, rows, environment, trained_round=trained_round)
    open_to_others(folder)


def open_to_others(folder: Path) -> None:
    """Modes as any new file's here: safetensors 0.8 writes files that their owner alone may read."""
    hidden = os.umask(0o022)  # it can only be read by being set
    os.umask(hidden)
    mode = 0o666 & ~hidden
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
