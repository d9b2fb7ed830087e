"""The recipes that ship: found by name wherever memdiff is installed, and what each is about. No torch."""

import difflib
import re
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.runtime.shipped_folder import shipped_folder

SUFFIXES = (".yaml", ".yml")


def shipped_recipes() -> dict[str, Path]:
    """Every recipe that ships, by its name, in the order of names."""
    return {file.stem: file for file in sorted(shipped_folder("launch/recipes").glob("*.yaml"))}


def find_recipe(recipe: Path) -> Path:
    """The file itself, or where there is none, the shipped recipe of that name, with or without its suffix.

    Raises ConfigError with the nearest names.
    """
    if recipe.exists() or len(recipe.parts) > 1:
        return recipe
    shipped = shipped_recipes()
    name = recipe.stem if recipe.suffix in SUFFIXES else recipe.name
    if name in shipped:
        return shipped[name]
    close = difflib.get_close_matches(name, shipped, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; `memdiff recipes` lists those that ship"
    raise ConfigError(f"no such recipe: {recipe}{hint}")


def headline(file: Path) -> str:
    """The first sentence of the comment at the head of a recipe."""
    words: list[str] = []
    for line in file.read_text().splitlines():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        words.append(line.removeprefix("#").strip())
    text = re.sub(r" \([^()]*\d{4}[^()]*\)", "", " ".join(words))
    return re.split(r"(?<=\.) (?=[A-Z])|: ", text.replace("et al. ", "et al "))[0].removesuffix(".")
