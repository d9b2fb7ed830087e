"""What a run folder holds, read with distrust: a missing or broken optional file becomes a note, not a failure."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from memdiff.errors import ConfigError
from memdiff.reporting.rows import read_rows
from memdiff.runtime.numbered import numbered
from memdiff.runtime.small_files import home_of

Row = dict[str, Any]
LARGEST_TEXT_BYTES = 1 << 20
LARGEST_NUMBER = 1e100  # beyond it axis limits overflow; no metric means anything there
LARGEST_ROUND = 10**9


@dataclass(frozen=True)
class RunRecord:
    """A run folder's content. `training` holds the rows of rounds 1.., `evaluations` those that were evaluated."""

    path: Path
    training: list[Row]
    evaluations: list[Row]
    status: Row
    judge: Row
    plan: Row
    recipe_text: str
    recipe: Row
    samples: dict[int, Path]
    evolution: Path | None
    events: list[tuple[int, str, str, str]] = field(default_factory=list)  # round, event, words, time
    tiles: dict[int, Row] = field(default_factory=dict)  # prompts and scores of a grid, by its round
    notes: list[str] = field(default_factory=list)


def read_folder(path: Path) -> RunRecord:
    """Read a run folder. Raises ConfigError if it is none or has no row of a round yet."""
    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder. Give the folder that `memdiff train` named on its last line.")
    metrics = path / "metrics.jsonl"
    if not metrics.is_file() or not _within(path, metrics):
        raise ConfigError(f"{path} is not a run folder: it has no metrics.jsonl. Give the folder of a run.")
    every_row = read_rows(metrics)
    by_round = {int(row["round"]): row for row in every_row if _is_round(row.get("round"))}
    rows = [by_round[number] for number in sorted(by_round)]
    if not rows:
        raise ConfigError(f"{metrics} has no row of a round yet. Wait for the first round to end, then try again.")

    notes: list[str] = []
    if len(rows) < len(every_row):
        notes.append(
            f"Rows left out: {len(every_row) - len(rows)}, which repeat a round (its last row counts) or name none."
        )
    recipe_text = _read_text(path, "config.yaml", notes)
    samples = {
        number: image
        for number, image in numbered(path / "samples", "round_", ".png").items()
        if number <= LARGEST_ROUND and image.is_file() and _within(path, image)
    }
    evolution = path / "samples" / "evolution.gif"
    return RunRecord(
        path=path,
        training=[row for row in rows if row["round"] >= 1],
        evaluations=[row for row in rows if any(key.startswith("evaluate/") for key in row)],
        status=_read_object(path, "status.json", notes),
        judge=_read_object(path, "judge.json", notes),
        plan=_read_object(path, "plan.json", notes),
        recipe_text=recipe_text,
        recipe=_parse_recipe(recipe_text),
        samples=samples,
        evolution=evolution if evolution.is_file() and _within(path, evolution) else None,
        events=_read_events(path),
        tiles={number: _read_object(path, f"samples/{file.stem}.json", notes) for number, file in samples.items()},
        notes=notes,
    )


def number(value: object) -> float:
    """A JSON value as a float, true as 1; NaN for null, texts, lists, infinities and what is beyond all measure."""
    if not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < LARGEST_NUMBER else math.nan


def column(rows: list[Row], key: str) -> list[float]:
    """One metric over the rows; NaN where a row has no number there."""
    return [number(row.get(key)) for row in rows]


def known(values: list[float]) -> list[float]:
    """The values that are not NaN."""
    return [value for value in values if not math.isnan(value)]


def keys_with(rows: list[Row], prefix: str) -> list[str]:
    """Keys that begin with `prefix` and hold at least one number, in order of appearance."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(prefix))
    return [key for key in keys if known(column(rows, key))]


def names_of(run: RunRecord, prefix: str) -> list[str]:
    """Parts with a column `prefix` + name, those first that only evaluations have: no reward, so the best witnesses."""
    trained = [key.removeprefix(prefix) for key in keys_with(run.training, prefix)]
    evaluated = [key.removeprefix(f"evaluate/{prefix}") for key in keys_with(run.evaluations, f"evaluate/{prefix}")]
    held_out = [name for name in evaluated if f"{prefix}{name}" not in {key for row in run.training for key in row}]
    return list(dict.fromkeys([*held_out, *trained, *evaluated]))


def names_shown(run: RunRecord, rows: list[Row], prefix: str = "") -> list[str]:
    """Parts that have a plot of their own in a table of rows; `prefix`: `evaluate/` or nothing.

    Not one whose numbers another plot shows: the total's where it is the only one, or its share's.
    """
    shown = []
    for name in names_of(run, "reward/"):
        values = column(rows, f"{prefix}reward/{name}")
        others = (column(rows, f"{prefix}{key}") for key in ("reward_mean", f"share/{name}"))
        if known(values) and not any(known(values) == known(other) for other in others):
            shown.append(name)
    return shown


def best_round(evaluations: list[Row]) -> int | None:
    """The round marked best last; without marks the one of the highest evaluation reward; None without evaluations."""
    marked = [row["round"] for row in evaluations if row.get("evaluate/best") is True]
    if marked:
        return marked[-1]
    scored = [(number(row.get("evaluate/reward_mean")), row["round"]) for row in evaluations]
    scored = [pair for pair in scored if not math.isnan(pair[0])]
    return max(scored)[1] if scored else None


def _is_round(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ROUND


def _within(folder: Path, path: Path) -> bool:
    """False for a link that leads out of the run folder."""
    return path.resolve().is_relative_to(home_of(folder))


def _read_text(folder: Path, name: str, notes: list[str]) -> str:
    path = folder / name
    if not path.is_file() or not _within(folder, path):
        return ""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TEXT_BYTES + 1)
    except OSError as error:
        notes.append(f"{name} can't be read: {error.strerror}.")
        return ""
    if len(content) > LARGEST_TEXT_BYTES:
        notes.append(f"{name} is longer than 1 MiB; only its beginning is used.")
    return content[:LARGEST_TEXT_BYTES].decode("utf-8", errors="replace").removeprefix("\ufeff")


def _read_object(folder: Path, name: str, notes: list[str]) -> Row:
    text = _read_text(folder, name, notes)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{name} is not a JSON object and is left out.")
        return {}
    return value


def _read_events(folder: Path) -> list[tuple[int, str, str, str]]:
    """What lies in events.jsonl; a line that is no event is nobody's loss."""
    events = []
    for line in _read_text(folder, "events.jsonl", []).splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and _is_round(event.get("round")):
            texts = [event.get(key) for key in ("event", "text", "time")]
            events.append((int(event["round"]), *(text if isinstance(text, str) else "" for text in texts)))
    return events


def _parse_recipe(text: str) -> Row:
    """The recipe for the headline only; one that can't be parsed is still shown verbatim.

    The base loader makes texts of all values and expands neither tags nor merge keys, so a YAML bomb stays small.
    """
    try:
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
