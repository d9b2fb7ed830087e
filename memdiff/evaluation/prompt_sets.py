"""Prompt sets in their published formats: DrawBench, HPDv2, PartiPrompts, GenEval. No torch.

Files are read as `memdiff train` reads them (memdiff.recipe.prompt_files); what is more in them depends on the format,
which follows from the file's name and content:

    DrawBench     .csv    columns `Prompts`, `Category`                           (Saharia et al. 2022)
    PartiPrompts  .tsv    columns `Prompt`, `Category`, `Challenge`, `Note`       (Yu et al. 2022)
    HPDv2         .json   a list of texts (anime.json, ...: the category is the file's name), or of objects with a
                          `prompt` (test.json, train.json)                        (Wu et al. 2023)
    GenEval       .jsonl  `prompt`, `tag`, `include`, `exclude` in each line      (Ghosh et al. 2023)
    memdiff       .txt    a text in each line; .jsonl with a `prompt` in each
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, ValidationError

from memdiff.errors import ConfigError
from memdiff.recipe.prompt_files import Entry, prompt_bytes, read_entries
from memdiff.runtime.section import Int, Section

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
    entries = read_entries(path)
    match path.suffix.lower():
        case ".csv" | ".tsv" as suffix:
            kind = "DrawBench" if suffix == ".csv" else "PartiPrompts"
            prompts = [Prompt(entry.text, str(entry.fields.get("category", "")).strip()) for entry in entries]
        case ".json":
            kind, prompts = "HPDv2", [Prompt(entry.text, "" if entry.fields else path.stem) for entry in entries]
        case ".jsonl" if {"tag", "include"} <= entries[0].fields.keys():
            kind, prompts = "GenEval", [_scene_of(f"{path} {entry.where}", entry) for entry in entries]
        case _:
            kind, prompts = "texts", [Prompt(entry.text) for entry in entries]
    return PromptFile(path, kind, hashlib.sha256(prompt_bytes(path)).hexdigest(), tuple(prompts))


def _scene_of(where: str, entry: Entry) -> Prompt:
    fields = entry.fields
    if not {"tag", "include"} <= fields.keys():
        raise ConfigError(f"{where}: prompt, tag and include are needed, got {str(dict(fields))[:60]!r}")
    try:
        scene = Scene.model_validate({key: fields[key] for key in ("tag", "include", "exclude") if key in fields})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {key}: {first['msg']}, got {first['input']!r:.60}") from None
    for number, wanted in enumerate(scene.include):
        if wanted.position is not None and not (wanted.position[0] in POSITIONS and 0 <= wanted.position[1] < number):
            raise ConfigError(f"{where}: a position is one of {', '.join(POSITIONS)} and an earlier object's number")
    return Prompt(entry.text, scene.tag, scene)
