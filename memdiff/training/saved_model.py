"""What a saved model has beside its weights: a card, the base's name, files that others may read. No torch."""

import json
import os
from pathlib import Path
from typing import Any

from memdiff.models.config import base_of
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.card import write_card
from memdiff.reporting.folder import Row

PEFT_CONFIG = "adapter_config.json"


def describe_model(
    folder: Path, recipe: Recipe, rows: list[Row], environment: dict[str, Any], *, trained_round: int
) -> None:
    """Card, base's name and modes. Raises OSError; the weights are whole before and after."""
    for config in folder.rglob(PEFT_CONFIG):
        content = json.loads(config.read_text(encoding="utf-8"))
        content["base_model_name_or_path"] = base_of(recipe.model)
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
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
