"""The page of all keys of a recipe, from its JSON Schema: what a key may be, its default, what it means.

python -m docs.generate.recipe_keys     # writes docs/recipe.md
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memdiff.recipe.schema import recipe_schema

PAGE = Path(__file__).resolve().parents[1] / "recipe.md"
Schema = dict[str, Any]
BOUNDS = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
FAR = 1e6  # bounds beyond it only keep nonsense out, and are not shown
PLURALS = {"a text": "texts", "a whole number": "whole numbers", "a number": "numbers"}
HEAD = """# A recipe, key by key

A recipe is one YAML file. `memdiff init` writes one with comments, `memdiff recipes --show NAME` prints one that ships,
and any key can be set from the command line: `--set run.rounds=5`. An unknown key is refused in a second.

This page is made of the schema, which `memdiff schema` prints; an editor that reads it completes keys and shows what
they mean. *needed*: the key has no default. `null` is YAML's word for what the descriptions call None.
"""


def recipe_page() -> str:
    """The page in Markdown, a heading per section in the order of a recipe."""
    return Pages(recipe_schema()).page()


class Pages:
    """Walks the schema; `sections` are its `$defs`."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.sections: dict[str, Schema] = schema["$defs"]

    def page(self) -> str:
        """Every section of a recipe, and the sections inside them behind it."""
        lines = [HEAD]
        required = set(self.schema["required"])
        for name, key in self.schema["properties"].items():
            lines += [f"## {name}", ""]
            kinds = self.kinds(key)
            if name not in required:
                lines += ["May be left out.", ""]
            if not kinds:
                said = key["description"]
                referred = self.referred(key)
                lines += [
                    said if referred is None else f"{first_paragraph(referred)} {_unless_same(said, referred)}",
                    "",
                ]
            if not kinds and self.referred(key) is None:
                lines += [f"`{name}` is {self.type_of(key)}; default {value(key.get('default'))}.", ""]
            lines += self.tables(name, key)
        return "\n".join(lines) + "\n"

    def tables(self, dotted: str, key: Schema) -> Iterator[str]:
        """The tables of a section: one per kind, and behind each those of the sections in it."""
        kinds = self.kinds(key)
        if not kinds:
            section = self.referred(key)
            if section is not None:
                yield from self.table(dotted, section)
            return
        for kind, section in kinds.items():
            yield f"### {dotted}, kind: {kind}"
            yield ""
            yield first_paragraph(section)
            yield ""
            yield from self.table(dotted, section, without="kind", level="####")

    def table(self, dotted: str, section: Schema, without: str = "", level: str = "###") -> Iterator[str]:
        """Key, what it may be, default, meaning; then the tables of the sections inside, under headings of `level`."""
        required, inside = set(section.get("required", ())), []
        rows = {name: key for name, key in section.get("properties", {}).items() if name != without}
        if rows:
            yield "| key | may be | default | meaning |"
            yield "|---|---|---|---|"
        for name, key in rows.items():
            nested = self.referred(key) is not None or bool(self.kinds(key))
            if nested and not self.rewards(key):
                inside.append((f"{dotted}.{name}", key))
            default = "needed" if name in required else value(key.get("default"), nested=nested)
            yield f"| `{name}` | {self.type_of(key)} | {default} | {cell(key['description'])} |"
        yield ""
        for place, key in inside:
            yield f"{level} {place}"
            yield ""
            if self.kinds(key):
                for kind, inner in self.kinds(key).items():
                    yield f"`kind: {kind}`: {first_paragraph(inner)}"
                    yield ""
                    yield from self.table(place, inner, without="kind")
            else:
                inner = self.referred(key)
                assert inner is not None
                yield from self.table(place, inner)

    def rewards(self, key: Schema) -> bool:
        """Whether a key holds parts of a reward, which have a heading of their own."""
        return self.kinds(key) == self.kinds(self.schema["properties"]["reward"])

    def kinds(self, key: Schema) -> dict[str, Schema]:
        """Of a tagged union, or a list of one: the section of each kind."""
        for node in (key, key.get("items", {}), *key.get("anyOf", ())):
            mapping = node.get("discriminator", {}).get("mapping")
            if mapping:
                return {kind: self.sections[reference.rpartition("/")[2]] for kind, reference in mapping.items()}
        return {}

    def referred(self, key: Schema) -> Schema | None:
        """The section that a key holds, where it holds one."""
        for node in (key, *key.get("anyOf", ())):
            if "$ref" in node:
                return self.sections[node["$ref"].rpartition("/")[2]]
        return None

    def type_of(self, key: Schema) -> str:
        """What may stand there, in words, with its bounds."""
        if self.rewards(key):
            return "a list of parts, as under [reward](#reward)"
        if self.kinds(key):
            return "a section, by kind"
        if "$ref" in key:
            section = self.sections[key["$ref"].rpartition("/")[2]]
            return "a section" if section.get("type") == "object" else self.type_of(section)
        if "anyOf" in key:
            return " or ".join(dict.fromkeys(self.type_of(node) for node in key["anyOf"]))
        if "enum" in key:
            return ", ".join(code(word) for word in key["enum"])
        if "const" in key:
            return code(key["const"])
        match key.get("type"):
            case "array" if "prefixItems" in key:
                return f"[{', '.join(self.type_of(node) for node in key['prefixItems'])}]"
            case "array":
                singular = self.type_of(key.get("items", {}))
                words = next((word for word in PLURALS if singular.startswith(word)), "")
                return f"a list of {PLURALS.get(words, '')}{singular.removeprefix(words)}"
            case "integer":
                return _with_bounds("a whole number", key)
            case "number":
                return _with_bounds("a number", key)
            case "string":
                return "a text"
            case "boolean":
                return "`true`, `false`"
            case "null":
                return "`null`"
            case other:
                raise ValueError(f"the schema has a type that this page has no words for: {other}, in {key}")


def _with_bounds(words: str, key: Schema) -> str:
    bounds = [
        f"{sign} {key[name]:g}"
        for name, sign in BOUNDS
        if name in key and (abs(key[name]) < FAR and (sign[0] == ">" or key[name] != 0))
    ]
    return " ".join([words, ", ".join(bounds)]).rstrip()


def _unless_same(said: str, section: Schema) -> str:
    return "" if said.rstrip(".") in first_paragraph(section) else said


def first_paragraph(section: Schema) -> str:
    """Of a section's docstring, on one line."""
    return " ".join(section.get("description", "").split("\n\n")[0].split())


def cell(text: str) -> str:
    """A description that can stand in a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def code(word: Any) -> str:
    """A value as YAML has it."""
    return f"`{word if isinstance(word, str) else json.dumps(word)}`"


def value(default: Any, *, nested: bool = False) -> str:
    """A default as YAML has it; of a section, that it has defaults of its own."""
    if nested and default not in (None, []):
        return "its own defaults"
    if isinstance(default, float) and default != 0 and not 1e-3 <= abs(default) < 1e6:
        return f"`{default:g}`"
    return code(default)


if __name__ == "__main__":
    PAGE.write_text(recipe_page(), encoding="utf-8")
