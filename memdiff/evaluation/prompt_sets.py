"""Prompt sets in their published formats: DrawBench, HPDv2, PartiPrompts, GenEval. No torch.

The format follows from the file's name and content:

    DrawBench     .csv    columns `Prompts`, `Category`                           (Saharia et al. 2022)
    PartiPrompts  .tsv    columns `Prompt`, `Category`, `Challenge`, `Note`       (Yu et al. 2022)
    HPDv2         .json   a list of texts (anime.json, ...: the category is the file's name), or of objects with a
                          `prompt` (test.json, train.json)                        (Wu et al. 2023)
    GenEval       .jsonl  `prompt`, `tag`, `include`, `exclude` in each line      (Ghosh et al. 2023)
    memdiff       .txt    a text in each line; .jsonl with a `prompt` in each
"""

import csv
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from memdiff.errors import ConfigError
from memdiff.recipe.prompt_files import MOST_BYTES, read_prompt_file
from memdiff.runtime.section import Int, Section
from memdiff.runtime.small_files import read_small_file

Position = tuple[str, Int]  # `left of`, `right of`, `above` or `below`, and the number of the object in `include`
POSITIONS = ("left of", "right of", "above", "below")


class WantedObject(Section):
    """An object of GenEval's metadata: at least `count` of its class (or, to be excluded, from `count` on)."""

    class_: str = Field(alias="class", min_length=1)
    count: Int = Field(ge=1)
    color: str | None = None
    position: Position | None = None


class Scene(Section):
    """What GenEval's metadata say an image of a prompt must show."""

    tag: str = Field(min_length=1)
    include: tuple[WantedObject, ...] = Field(min_length=1)
    exclude: tuple[WantedObject, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A text, the category that its set puts it into (empty: none), and what GenEval wants to see."""

    text: str
    category: str = ""
    scene: Scene | None = None


@dataclass(frozen=True)
class PromptFile:
    """A file of a prompt set, as it was read."""

    path: Path
    format: str
    sha256: str
    prompts: tuple[Prompt, ...] = field(repr=False)


def read_prompt_set(path: Path) -> PromptFile:
    """All prompts of a file, in its order. Raises ConfigError in one line that names the file, and the line in it."""
    text = _text_of(path)
    match path.suffix.lower():
        case ".csv":
            kind, prompts = (
                "DrawBench",
                _of_table(path, list(csv.reader(io.StringIO(text, newline=""))), ("prompts", "prompt")),
            )
        case ".tsv":
            kind, prompts = "PartiPrompts", _of_table(path, [_cells(line) for line in _lines(text)], ("prompt",))
        case ".json":
            kind, prompts = "HPDv2", _of_json(path, text)
        case ".jsonl" if _is_geneval(text):
            kind, prompts = "GenEval", _of_geneval(path, text)
        case _:
            kind, prompts = "texts", [Prompt(line) for line in read_prompt_file(path)]
    if not prompts:
        raise ConfigError(f"the prompt file {path} holds no prompt")
    return PromptFile(path, kind, hashlib.sha256(path.read_bytes()).hexdigest(), tuple(prompts))


def _text_of(path: Path) -> str:
    try:
        return read_small_file(path, what="the prompt file", most_bytes=MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no such prompt file: {path}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; prompt sets are UTF-8") from None


def _lines(text: str) -> list[str]:
    """Not `splitlines`, which also breaks at letters that a text may hold."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _cells(line: str) -> list[str]:
    """A line of a TSV. A quotation mark inside a text opens nothing: one record is one line."""
    try:
        return next(csv.reader([line], delimiter="\t", strict=True), [])
    except csv.Error:
        return line.split("\t")


def _of_table(path: Path, rows: list[list[str]], names: tuple[str, ...]) -> list[Prompt]:
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in names if name in header), None)
    if column is None:
        raise ConfigError(f"{path}: the first line must name a column {names[0].capitalize()}, got {rows[:1]!r:.100}")
    category = header.index("category") if "category" in header else None
    prompts = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= column or not row[column].strip():
            raise ConfigError(f"{path} line {number}: a prompt is needed in column {column + 1}, got {row!r:.100}")
        group = row[category].strip() if category is not None and category < len(row) else ""
        prompts.append(Prompt(row[column].strip(), group))
    return prompts


def _of_json(path: Path, text: str) -> list[Prompt]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a JSON file ({type(error).__name__})") from None
    if not isinstance(entries, list):
        raise ConfigError(f"{path} must hold a list of prompts as HPDv2's files do, got {type(entries).__name__}")
    prompts = []
    for number, entry in enumerate(entries):
        words, group = (entry.get("prompt"), "") if isinstance(entry, dict) else (entry, path.stem)
        if not isinstance(words, str) or not words.strip():
            raise ConfigError(
                f"{path} entry {number}: a text, or an object with a prompt, is needed, got {entry!r:.80}"
            )
        prompts.append(Prompt(words.strip(), group))
    return prompts


def _is_geneval(text: str) -> bool:
    """Whether the first line carries GenEval's metadata."""
    first = next((line for line in _lines(text) if line.strip()), "")
    try:
        entry = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and {"tag", "include"} <= entry.keys()


def _of_geneval(path: Path, text: str) -> list[Prompt]:
    lines = [(number, line) for number, line in enumerate(_lines(text), start=1) if line.strip()]
    return [_scene_of(f"{path} line {number}", line) for number, line in lines]


def _scene_of(where: str, line: str) -> Prompt:
    try:
        entry: Any = json.loads(line)
        words = entry["prompt"]
        scene = Scene.model_validate({key: entry[key] for key in ("tag", "include", "exclude") if key in entry})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {key}: {first['msg']}, got {first['input']!r:.60}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConfigError(f"{where}: prompt, tag and include are needed, got {line[:60]!r}") from None
    if not isinstance(words, str) or not words.strip():
        raise ConfigError(f"{where}: the prompt must be a text, got {words!r:.60}")
    for number, wanted in enumerate(scene.include):
        if wanted.position is not None and not (wanted.position[0] in POSITIONS and 0 <= wanted.position[1] < number):
            raise ConfigError(f"{where}: a position is one of {', '.join(POSITIONS)} and an earlier object's number")
    return Prompt(words.strip(), scene.tag, scene)
