"""Words that the report, the card and the comparison share. Reads recipes with distrust. No torch."""

import unicodedata
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

LONGEST_NAME = 120  # letters of a name or a message in a heading
REORDERING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
MOST_NAMES = 3  # of one kind of reward


def printable(value: Any) -> Any:
    """Replace what no reader should meet: control letters, lone surrogates, letters that reorder a line."""
    if not isinstance(value, str):
        return value
    return "".join(
        letter
        if letter in "\n\t" or (unicodedata.category(letter) not in ("Cc", "Cs") and letter not in REORDERING)
        else "\ufffd"
        for letter in value.replace("\r\n", "\n")
    )


def short(text: str) -> str:
    """A name cut to what a heading holds."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_NAME else line[:LONGEST_NAME] + "…"


def reward_words(kinds_and_names: Iterable[tuple[str, str]]) -> str:
    """`aesthetic and digits (0, 1, 2 and 8 more)`: parts by their kinds, with names where they have their own."""
    names_by_kind: dict[str, list[str]] = {}
    for kind, name in kinds_and_names:
        names_by_kind.setdefault(kind, []).append(name)
    return " and ".join(_kind_words(kind, names) for kind, names in names_by_kind.items())


def _kind_words(kind: str, names: list[str]) -> str:
    if names == [kind]:
        return kind
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{kind} ({', '.join(names[:MOST_NAMES])}{more})"


def section_of(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a recipe that nobody has checked; empty where there is none."""
    section = recipe.get(name)
    return section if isinstance(section, dict) else {}


def parts_of(recipe: dict[str, Any], section: str = "reward") -> list[dict[str, Any]]:
    """The parts of a recipe's reward (or of `evaluate.rewards`) that nobody has checked."""
    parts = section_of(recipe, "evaluate").get("rewards") if section == "evaluate" else recipe.get("reward")
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def title_of(recipe: dict[str, Any]) -> str:
    """`digits, rewarded by digits (0, 1, 2 and 8 more): reinforce`; empty where the recipe does not say it."""
    model, method = section_of(recipe, "model"), section_of(recipe, "method")
    path = model.get("path") or model.get("name") or model.get("kind")
    if not path or not method.get("kind"):
        return ""
    name = str(path) if str(path).count("/") == 1 else PurePath(str(path)).name
    words = reward_words((str(part.get("kind", "")), part_title(part)) for part in parts_of(recipe))
    return f"{name}{f', rewarded by {words}' if words else ''}: {method['kind']}"


def part_title(part: dict[str, Any]) -> str:
    """What a part is called: the recipe's own name for it, a label, a function, or the kind."""
    names = (part.get(key) for key in ("name", "label", "function"))
    own = next((str(name) for name in names if name and name != "null"), "")  # the base loader leaves texts
    return own or str(part.get("kind", ""))
