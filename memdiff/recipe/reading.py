"""Reads a recipe file: YAML in, a checked `Recipe` out, every mistake as one line. No torch."""

import copy
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from memdiff.errors import ConfigError
from memdiff.recipe.recipe import Recipe
from memdiff.recipe.shipped import find_recipe
from memdiff.runtime.section import Section

MAX_BYTES = 1_000_000
# yaml raises more than its own errors: for dates that don't exist, tags that don't fit, endless digits and brackets.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError, AttributeError, KeyError)


class _RecipeLoader(yaml.SafeLoader):
    """YAML without aliases (a few lines of them unfold to gigabytes) and without keys given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the shipped one of that name, with `a.b=value` overrides laid over it.

    Raises ConfigError: one line that names the dotted key, what was got and what is allowed.
    """
    raw, path = read_recipe_data(path)
    for override in overrides:
        _override(raw, override)
    return check_recipe(raw, source=path.name, folder=path.resolve().parent)


def read_recipe_data(path: Path) -> tuple[dict[str, Any], Path]:
    """What stands in a recipe, unchecked, and its file: the one at `path`, or the shipped one of that name."""
    path = find_recipe(path)
    return _read_yaml(path), path


def laid_over(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's plain data with `{"a.b": value}` laid over it. Raises ConfigError."""
    result = copy.deepcopy(dict(raw))
    for dotted, value in changes.items():
        _lay_over(result, dotted, value)
    return result


def check_recipe(raw: Mapping[str, Any], *, source: str, folder: Path | None = None) -> Recipe:
    """A recipe from plain data. Relative files are looked for in the working directory, then in `folder`."""
    try:
        return Recipe.model_validate(raw, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(f"{source}: {one_line(error, raw, Recipe)}") from None


def read_value(text: str) -> Any:
    """What a word on the command line means as YAML. Raises ConfigError where it is none."""
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except NOT_YAML:
        raise ConfigError(f"{_show(text)} is not a YAML value") from None


def recipe_hash(recipe: Recipe) -> str:
    """Of all that decides the weights: a resumed run must have the same."""
    return hashlib.sha256(json.dumps(_deciding(recipe), sort_keys=True).encode()).hexdigest()


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Dotted keys that decide the weights and differ."""
    before, after = _deciding(old), _deciding(new)
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """Left out: a run may be made longer, guards only warn or end it, memory knobs change gradients by rounding."""
    flat = _flatten(recipe.model_dump(mode="json"))
    free = (
        "run.rounds",
        "run.save_every",
        "run.keep_checkpoints",
        "run.watchdog_seconds",
        "run.max_hours",
        "memory.",
        "guards.",
    )
    return {key: value for key, value in flat.items() if not key.startswith(free)}


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {k: v for key, item in items for k, v in _flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: a recipe is at most {MAX_BYTES} bytes, got {path.stat().st_size}")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no such recipe: {path}; `memdiff recipes` lists those that ship") from None
    except OSError as error:
        raise ConfigError(f"the recipe {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; a recipe is YAML in UTF-8") from None
    try:
        raw = yaml.load(text, Loader=_RecipeLoader)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ConfigError(f"{path.name}: not valid YAML{where}: {error.problem}") from None
    except NOT_YAML as error:
        raise ConfigError(f"{path.name}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name}: a recipe is a mapping of sections, got {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not all(dotted.split(".")):
        raise ConfigError(f"--set takes a.b=value, got {override!r}")
    try:
        value = read_value(text)
    except ConfigError as error:
        raise ConfigError(f"--set {dotted}: {error}") from None
    _lay_over(raw, dotted, value)


def _lay_over(raw: dict[str, Any], dotted: str, value: Any) -> None:
    keys = dotted.split(".")
    node: Any = raw
    for key in keys[:-1]:
        if isinstance(node, list):
            node = node[_list_index(node, key, dotted)]
            if not isinstance(node, dict | list):
                raise ConfigError(f"--set {dotted}: entry {key} is a value, not a section")
            continue
        if not isinstance(node.get(key), dict | list):
            node[key] = {}
        node = node[key]
    if isinstance(node, list):
        node[_list_index(node, keys[-1], dotted)] = value
    else:
        node[keys[-1]] = value


def _list_index(node: list[Any], key: str, dotted: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        allowed = f"0..{len(node) - 1}" if node else "and the list is empty"
        raise ConfigError(f"--set {dotted}: {key!r} must be the number of an entry, {allowed}")
    return int(key)


def one_line(error: ValidationError, raw: Mapping[str, Any], root: type[Section]) -> str:
    """The first mistake in `raw`, a `root` section: dotted, with what was got, and how many more there are."""
    # A misspelt key is both unknown and missing: the first tells more. A list with a wrong entry is also "too short".
    mistakes = [mistake for mistake in error.errors(include_url=False) if mistake["type"] != "too_short"]
    mistakes = sorted(mistakes or error.errors(include_url=False), key=lambda m: m["type"] != "extra_forbidden")
    first = mistakes[0]
    path, node, sections = _locate(first["loc"], raw, root)
    dotted = ".".join(path) or "the recipe"
    same = [mistake for mistake in mistakes if _locate(mistake["loc"], raw, root)[0] == path]  # branches of one union
    match first["type"]:
        case "extra_forbidden":
            message = f"unknown key {dotted}{_did_you_mean(path[-1], sections)}"
        case "missing" if isinstance(first["loc"][-1], int):
            message = f"{dotted} needs {first['loc'][-1] + 1} entries, got {_show(node)}"
        case "missing":
            message = f"{dotted} is missing"
        case "union_tag_not_found":
            message = f"{dotted} needs a kind"
        case "union_tag_invalid":
            allowed = first.get("ctx", {}).get("expected_tags", "")
            message = f"{dotted}.kind must be one of {allowed}, got {_show(_kind(node))}"
        case "value_error":
            reason = str(first.get("ctx", {}).get("error", first["msg"]))
            message = f"{dotted}: {reason}" if path else reason
        case _:
            reasons = dict.fromkeys(mistake["msg"][0].lower() + mistake["msg"][1:] for mistake in same)
            message = f"{dotted}: {', or '.join(reasons)}, got {_show(node)}"
    more = len({tuple(_locate(mistake["loc"], raw, root)[0]) for mistake in mistakes}) - 1
    return f"{message} (and {more} more)" if more else message


def _kind(node: Any) -> Any:
    return node.get("kind") if isinstance(node, Mapping) else node


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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


def _did_you_mean(key: str, sections: list[type[Section]]) -> str:
    known = sorted({name for section in sections for name in section.model_fields})
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
