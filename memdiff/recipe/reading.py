"""Reads a recipe file: YAML in, a checked `Recipe` out, every mistake as one line. No torch."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from memdiff.errors import ConfigError
from memdiff.recipe.mistakes import RecipeError, mistakes_of, shown
from memdiff.recipe.recipe import Recipe
from memdiff.recipe.shipped import find_recipe
from memdiff.runtime.small_files import read_small_file

# Recipes have some hundred values; many thousands take yaml and pydantic minutes. Prompts may lie in a file.
MOST_BYTES, MOST_VALUES, DEEPEST = 250_000, 10_000, 20
TOO_DEEP = f"a recipe is at most {DEEPEST} levels deep"
# yaml raises more than its own errors: for dates that don't exist, tags that don't fit, endless digits and brackets.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError, AttributeError, KeyError, ArithmeticError)


class _RecipeLoader(yaml.SafeLoader):
    """YAML of a recipe's size, without aliases (a few lines of them unfold to gigabytes), without keys given twice."""

    values = depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values, self.depth = self.values + 1, self.depth + 1
        if self.values > MOST_VALUES:
            raise self._mistake(f"a recipe has at most {MOST_VALUES} keys and values; many prompts go into a file")
        if self.depth > DEEPEST:
            raise self._mistake(TOO_DEEP)
        if self.check_event(yaml.AliasEvent):
            raise self._mistake("aliases (*name) are not supported")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > DEEPEST:  # yaml reads ahead, and for each token goes through all brackets that are open
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def _mistake(self, problem: str) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)

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
        raise RecipeError([f"{source}: {mistake}" for mistake in mistakes_of(error, raw, Recipe)]) from None


def read_value(text: str) -> Any:
    """What a word on the command line means as YAML. Raises ConfigError where it is none."""
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except NOT_YAML:
        raise ConfigError(f"{shown(text)} is not a YAML value") from None


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
        "run.log",
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


def recipe_text(path: Path) -> str:
    """The text of a recipe file, without a byte-order mark. Raises ConfigError."""
    try:
        return read_small_file(path, what="the recipe", most_bytes=MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no such recipe: {path}; `memdiff recipes` lists those that ship") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; a recipe is YAML in UTF-8") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    text = recipe_text(path)
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
