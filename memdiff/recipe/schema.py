"""The JSON Schema of a recipe, for editors and for the documentation. No torch."""

import re
from typing import Any

from memdiff.recipe.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# pydantic 2.13 leaves the bounds of a union's members under its own names, which no editor knows.
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def recipe_schema() -> dict[str, Any]:
    """Every key described: a `kind` and a whole section by what its section is."""
    schema = _with_bounds(Recipe.model_json_schema())
    sections = schema["$defs"]
    for section in (schema, *sections.values()):
        for name, key in section.get("properties", {}).items():
            if "description" not in key:
                described = section if name == "kind" else sections.get(_referred(key), {})
                key["description"] = _first_sentence(described.get("description", "")) or _alternatives(key, sections)
    return {"$schema": DIALECT, **schema}


def _with_bounds(node: Any) -> Any:
    """The same schema with bounds under JSON Schema's names."""
    if isinstance(node, list):
        return [_with_bounds(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    in_schema = "type" in node  # elsewhere `ge` would be a property of that name
    return {BOUNDS.get(key, key) if in_schema else key: _with_bounds(value) for key, value in node.items()}


def _referred(key: dict[str, Any]) -> str:
    return key.get("$ref", "").rpartition("/")[2]


def _alternatives(key: dict[str, Any], sections: dict[str, Any]) -> str:
    """Of a tagged union: its kinds, each with its own first sentence."""
    inner = key.get("items", key)
    kinds = inner.get("discriminator", {}).get("mapping", {})
    return " ".join(
        f"{kind}: {_first_sentence(sections[reference.rpartition('/')[2]].get('description', ''))}"
        for kind, reference in kinds.items()
    )


def _first_sentence(text: str) -> str:
    """Up to the first full stop at the end of a word, on one line."""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!et al)(?<=\.) (?=[A-Z`])", line)[0]
