"""What pydantic finds wrong with a section, as lines for a person: dotted key, what was got, what to do. No torch."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from memdiff.errors import ConfigError
from memdiff.recipe.synonyms import hint_for_key, hint_for_kind
from memdiff.runtime.section import Section

MOST_LINES = 50


class RecipeError(ConfigError):
    """All mistakes of a recipe; as one line, the first and how many more there are."""

    def __init__(self, lines: Sequence[str]) -> None:
        more = len(lines) - 1
        super().__init__(f"{lines[0]} (and {more} more)" if more else lines[0])
        self.lines = [
            *lines[:MOST_LINES],
            *([f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []),
        ]


@contextmanager
def listed_mistakes(wanted: bool) -> Iterator[None]:
    """Where it is wanted, all mistakes of a recipe are printed, a line each, before its error goes on its way."""
    try:
        yield
    except RecipeError as error:
        if wanted and len(error.lines) > 1:
            typer.echo("\n".join(error.lines))
        raise


def one_line(error: ValidationError, raw: Mapping[str, Any], root: type[Section]) -> str:
    """The first mistake in `raw`, a `root` section, and how many more there are."""
    return str(RecipeError(mistakes_of(error, raw, root)))


def mistakes_of(error: ValidationError, raw: Mapping[str, Any], root: type[Section]) -> list[str]:
    """A line for each place in `raw`, a `root` section, that has a mistake: unknown keys first."""
    # A misspelt key is both unknown and missing: the first tells more. A list with a wrong entry is also "too short".
    errors = error.errors(include_url=False)
    errors = [mistake for mistake in errors if mistake["type"] != "too_short"] or errors
    by_path: dict[tuple[str, ...], list[Any]] = {}  # branches of one union share a path
    for mistake in sorted(errors, key=lambda m: m["type"] != "extra_forbidden"):
        by_path.setdefault(tuple(_locate(mistake["loc"], raw, root)[0]), []).append(mistake)
    # An entry's mistake tells more than that the list is no other member of a union.
    inner = {path[:end] for path in by_path for end in range(len(path))}
    return [_line(mistakes, raw, root) for path, mistakes in by_path.items() if path not in inner]


def _line(mistakes: Sequence[Any], raw: Mapping[str, Any], root: type[Section]) -> str:
    """Of the mistakes at one place."""
    first = mistakes[0]
    path, node, sections = _locate(first["loc"], raw, root)
    dotted = ".".join(path) or "the recipe"
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {dotted}{_instead_of(path, sections)}"
        case "missing" if isinstance(first["loc"][-1], int):
            return f"{dotted} needs {first['loc'][-1] + 1} entries, got {shown(node)}"
        case "missing":
            return f"{dotted} is missing"
        case "union_tag_not_found":
            return f"{dotted} needs a kind{_meant_as_kind(dotted, node)}"
        case "union_tag_invalid":
            allowed = first.get("ctx", {}).get("expected_tags", "")
            kind = node.get("kind") if isinstance(node, Mapping) else node
            return f"{dotted}.kind must be one of {allowed}, got {shown(kind)}{hint_for_kind(path, kind)}"
        case "value_error":
            reason = str(first.get("ctx", {}).get("error", first["msg"]))
            return f"{dotted}: {reason}" if path else reason
        case _:
            reasons = dict.fromkeys(_reason(mistake, node) for mistake in mistakes)
            return f"{dotted}: {', or '.join(reasons)}, got {shown(node)}"


def shown(value: Any) -> str:
    """A value as it is shown in a line: cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits out; YAML's hexadecimal ones are read
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(mistake: Any, node: Any) -> str:
    """Pydantic's, in a recipe's words: its tuples are lists there."""
    if mistake["type"] == "tuple_type":
        inside = node if isinstance(node, str) else shown(node)
        return "a list is needed: []" if node is None else f"a list is needed, in brackets: [{inside}]"
    return mistake["msg"][0].lower() + mistake["msg"][1:]


def _meant_as_kind(dotted: str, node: Any) -> str:
    """The key of a section without a kind that is nearly called so."""
    names = {str(key).lower(): str(key) for key in node} if isinstance(node, Mapping) else {}
    close = difflib.get_close_matches("kind", names, n=1)
    return f"; is {dotted}.{names[close[0]]} meant to be it?" if close else ""


def _instead_of(path: Sequence[str], sections: Sequence[type[Section]]) -> str:
    """What an unknown key was meant to be: what others call so, a near name, a key of another section, or all names."""
    known = sorted({name for section in sections for name in section.model_fields})
    hint = hint_for_key(path)
    if hint:
        return hint
    close = difflib.get_close_matches(path[-1], known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _locate(loc: tuple[int | str, ...], raw: Any, root: type[Section]) -> tuple[list[str], Any, list[type[Section]]]:
    """The dotted path without pydantic's union tags, the data at it, and the sections its last key may belong to."""
    path: list[str] = []
    sections: list[type[Section]] = [root]
    node = raw
    for position, key in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(node, Mapping) and key == node.get("kind") and loc[position - 1] != key:
            continue  # pydantic's union tag; the key of the same name, where there is one, comes after it
        if _holds(node, key):
            node = node[key]
        elif not (last and isinstance(node, Mapping) and any(key in section.model_fields for section in sections)):
            continue
        path.append(str(key))
        if not last and isinstance(key, str):
            sections = [s for section in sections if key in section.model_fields for s in _sections_of(section, key)]
        if isinstance(node, Mapping) and "kind" in node:
            kinds = [s for s in sections if "kind" in s.model_fields]
            named = [s for s in kinds if node["kind"] in get_args(s.model_fields["kind"].annotation)]
            sections = named or sections
    return path, node, sections


def _holds(node: Any, key: int | str) -> bool:
    if isinstance(node, list):
        return isinstance(key, int) and key < len(node)
    return isinstance(node, Mapping) and key in node


def _sections_of(section: type[Section], key: str) -> list[type[Section]]:
    """The sections that stand anywhere in the annotation of a field."""
    field: FieldInfo = section.model_fields[key]
    section_types: list[type[Section]] = []
    waiting: list[Any] = [field.annotation]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, Section):
            section_types.append(annotation)
        waiting.extend(get_args(annotation))
    return section_types
