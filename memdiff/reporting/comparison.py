"""Several runs side by side: their figures, their curves in one plot each, their images, their recipes."""

import math
from dataclasses import dataclass
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.reporting import plots
from memdiff.reporting.folder import Row, RunRecord, best_round, column, known, names_of, names_shown, number
from memdiff.reporting.headline import flatten, full_seconds, heading, status_text
from memdiff.reporting.page import HERE, render_page
from memdiff.reporting.panel import Panel, make_panel
from memdiff.reporting.pictures import embed_png
from memdiff.reporting.plots import Series
from memdiff.reporting.words import part_title, parts_of, section_of
from memdiff.runtime.units import GIB, duration

MOST_RUNS = len(plots.COLOURS)
MOST_DIFFERENCES = 60
PART_KEYS = ("kind", "weight", "mode", "target_share", "digits", "label", "path", "file", "prompt", "normalise")
CURVES = (
    ("reward_mean", "Total reward", "weighted reward", "Mean over each round's images."),
    ("grad_norm", "Gradient norm", "gradient norm", "Length of the whole gradient before clipping."),
)


@dataclass(frozen=True)
class Column:
    """A run as it stands in the comparison: a name that is its own, and its last images."""

    name: str
    title: str
    colour: int
    picture: str  # a `data:` address; empty where it has no grid
    alt: str


def checked(runs: list[Path]) -> list[Path]:
    """The runs that can be put side by side. Raises ConfigError where there are too many, or one comes twice."""
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"report takes up to {MOST_RUNS} runs side by side, got {len(runs)}")
    places = [run.resolve() for run in runs]
    twice = next((run for run in runs if places.count(run.resolve()) > 1), None)
    if twice is not None:
        raise ConfigError(f"report: {twice} is given twice")
    return runs


def render(runs: list[RunRecord]) -> str:
    """The page as a string."""
    names = names_apart([run.path.resolve() for run in runs])
    notes = [f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes]
    columns = [_column(name, run, colour, notes) for colour, (name, run) in enumerate(zip(names, runs, strict=True))]
    return render_page(
        HERE / "comparison.html.j2",
        columns=columns,
        rows=figure_rows(runs),
        panels=panels(runs, names),
        same_reward=len({str(run.recipe.get("reward")) for run in runs}) == 1,
        differences=recipe_differences(runs)[:MOST_DIFFERENCES],
        notes=notes,
    )


def names_apart(places: list[Path]) -> list[str]:
    """Each folder by as many of its last parts as tell it from the others."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _column(name: str, run: RunRecord, colour: int, notes: list[str]) -> Column:
    picture, last = "", max(run.samples, default=0)
    if run.samples:
        try:
            picture = embed_png(run.samples[last])
        except ConfigError as error:
            notes.append(f"{name}: {error}")
    return Column(name, heading(run), colour, picture, f"Grid of samples of {name}, round {last}")


def figure_rows(runs: list[RunRecord]) -> list[tuple[str, list[str]]]:
    """Name of a figure, and a cell for each run."""
    rows = [
        ("state", [status_text(run, "state") or "n/a" for run in runs]),
        ("rounds", [str(len(run.training)) for run in runs]),
        ("images", [_last(run.training, "images", ",.0f") for run in runs]),
        ("reward, first → last round", [_change(run.training, "reward_mean") for run in runs]),
        ("reward, fixed noise", [_change(run.evaluations, "evaluate/reward_mean") for run in runs]),
        ("best round", ["n/a" if (best := best_round(run.evaluations)) is None else str(best) for run in runs]),
    ]
    rows += [
        (f"{name}, fixed noise", [_change(run.evaluations, f"evaluate/reward/{name}") for run in runs])
        for name in shared_names(runs)
    ]
    rows += [
        ("time", [duration(full_seconds(run)) if full_seconds(run) else "n/a" for run in runs]),
        ("peak memory", [_gib(max(known(column(run.training, "peak_bytes")), default=math.nan)) for run in runs]),
        ("planned peak", [_gib(number(run.plan.get("peak_bytes"))) for run in runs]),
        ("alarms", [str(sum(len(row.get("alarms") or ()) for row in run.training)) for run in runs]),
    ]
    return [(name, cells) for name, cells in rows if set(cells) != {"n/a"}]


def shared_names(runs: list[RunRecord]) -> list[str]:
    """Parts that more than one run measured on fixed noise: what the runs can be compared by."""
    each = [names_of(run, "reward/") for run in runs]
    every = dict.fromkeys(name for names in each for name in names)
    return [name for name in every if sum(name in names for names in each) > 1][:12]


def panels(runs: list[RunRecord], names: list[str]) -> list[Panel]:
    """A plot for each quantity that a run has, with a line for each run that has it."""
    shown = []
    for key, title, unit, caption in CURVES:
        shown += _panel(runs, names, [run.training for run in runs], key, title, unit, caption)
    evaluations = [run.evaluations for run in runs]
    fixed = "The same noise at every evaluation of a run."
    total = ("evaluate/reward_mean", "Total reward, fixed noise", "weighted reward", fixed)
    shown[1:1] = _panel(runs, names, evaluations, *total)
    for name in shared_names(runs):
        if not any(name in names_shown(run, run.evaluations, "evaluate/") for run in runs):
            continue  # the total shows it
        key = f"evaluate/reward/{name}"
        shown += _panel(runs, names, evaluations, key, f"Part: {name}, fixed noise", "raw reward", fixed)
    return shown


def _panel(
    runs: list[RunRecord], names: list[str], rows: list[list[Row]], key: str, title: str, unit: str, caption: str
) -> list[Panel]:
    drawn = [colour for colour in range(len(runs)) if known(column(rows[colour], key))]
    if not drawn:
        return []
    points = key.startswith("evaluate/")
    series = [Series(column(rows[c], "round"), column(rows[c], key), colour=c, points=points) for c in drawn]
    base = 10 if key == "grad_norm" else None
    svg = plots.line_plot(series, "round", unit, log_base=base)
    ends = "; ".join(f"{names[colour]}: {_change(rows[colour], key)}" for colour in drawn)
    panel = make_panel(title, caption, svg, [], legend=tuple((colour, names[colour]) for colour in drawn))
    return [Panel(panel.heading, caption, panel.light, panel.dark, f"{title}, first → last. {ends}", panel.legend)]


def recipe_differences(runs: list[RunRecord]) -> list[tuple[str, list[str]]]:
    """Keys of the recipes in which the runs differ, and what each has there."""
    flat = [_flat_recipe(run.recipe) for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = [(key, [each.get(key, "") for each in flat]) for key in keys]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1]


def _flat_recipe(recipe: Row) -> dict[str, str]:
    """Dotted keys with their values; a part of the reward is one key, under its own name."""
    evaluate = {key: value for key, value in section_of(recipe, "evaluate").items() if key != "rewards"}
    flat = dict(flatten({key: value for key, value in recipe.items() if key != "reward"} | {"evaluate": evaluate}))
    for section, key in (("reward", "reward"), ("evaluate", "evaluate.rewards")):
        for part in parts_of(recipe, section):
            settings = (f"{name} {_listed(part[name])}" for name in PART_KEYS if part.get(name) not in (None, "null"))
            flat[f"{key}: {part_title(part)}"] = ", ".join(settings)
    return flat


def _listed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _change(rows: list[Row], key: str) -> str:
    values = known(column(rows, key))
    return f"{values[0]:.3g} → {values[-1]:.3g}" if values else "n/a"


def _last(rows: list[Row], key: str, style: str) -> str:
    values = known(column(rows, key))
    return format(values[-1], style) if values else "n/a"


def _gib(size: float) -> str:
    return "n/a" if math.isnan(size) else f"{size / GIB:.2f} GiB"
