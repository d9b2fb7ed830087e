"""The recipes that ship: found by name wherever memdiff is installed, and what each is about. No torch."""

import difflib
import re
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.runtime.shipped_folder import shipped_folder

EDITORS = "# yaml-language-server:"  # the line that tells an editor which schema it is
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


def completions(incomplete: str) -> list[str]:
    """What a shell completes for a recipe: the files of the folder one stands in, and the names that ship."""
    here = sorted(str(file) for file in Path().glob("*") if file.suffix in SUFFIXES)
    return [name for name in (*here, *shipped_recipes()) if name.startswith(incomplete)]


def headline(file: Path) -> str:
    """The first sentence of the comment at the head of a recipe."""
    words: list[str] = []
    for line in file.read_text().splitlines():
        if not line.startswith("# ") or line.startswith(("#   ", EDITORS)):
            break
        words.append(line.removeprefix("#").strip())
    text = re.sub(r" \([^()]*\d{4}[^()]*\)", "", " ".join(words))
    return re.split(r"(?<=\.) (?=[A-Z])|: ", text.replace("et al. ", "et al "))[0].removesuffix(".")
