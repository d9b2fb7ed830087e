"""`report.html`: one self-contained page about a run, without scripts, that opens from a file.

Every string of the run is taken as hostile: jinja2 escapes all of them, letters that would reorder or hide text are
replaced, pixels are re-encoded, and the page's own policy allows its one style sheet and `data:` images, nothing else.
"""

import base64
import hashlib
import math
import os
import statistics
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import memdiff
from memdiff.errors import ConfigError
from memdiff.reporting import diagnostics, sections
from memdiff.reporting.folder import Row, RunRecord, best_round, column, known, names_of, number, read_folder
from memdiff.reporting.pictures import embed_evolution, embed_png
from memdiff.runtime.units import GIB

HERE = Path(__file__).parent
REORDERING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
LONGEST_NAME = 120  # letters of a name or a message in a heading
MOST_ENVIRONMENT_ROWS = 200
MOST_ALARMS = 100
DEVICE_WORDS = ("device", "devices", "device_name", "gpu", "gpus", "accelerator")
VERSION_WORDS = ("memdiff", "python", "torch", "deepspeed", "diffusers")
JUDGE_ROWS = (
    ("num_images", "images judged"),
    ("minority_share", "minority share"),
    ("recognised_share", "recognised share"),
    ("frechet_distance", "Fréchet distance"),
)


@dataclass(frozen=True)
class Picture:
    """A grid of samples as it stands in the page."""

    heading: str
    address: str
    alt: str


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder and return its path; the file appears whole or not at all.

    Raises ConfigError if the folder is no run, has no row of a round yet, or can't be written to.
    """
    page = render(read_folder(run)).encode("utf-8")
    target = run / "report.html"
    part = run / f".report.html.{os.getpid()}.tmp"
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:  # x: a link planted under this name is not followed
            file.write(page)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"can't write {target}: {error.strerror}. Free space or change its permissions.") from error
    return target


def render(run: RunRecord) -> str:
    """The page as a string."""
    notes = list(run.notes)
    other, left_out = diagnostics.other_panels(run)
    if left_out:
        notes.append(f"{left_out} more metrics are in metrics.jsonl and not shown.")
    described = flatten(run.status.get("environment"))
    samples, evolution = sample_pictures(run, notes)
    return render_page(
        HERE / "page.html.j2",
        name=run.path.resolve().name,
        state=status_text(run, "state"),
        message=status_text(run, "message"),
        summary=summary(run, described),
        tiles=tiles(run),
        rewards=sections.reward_panels(run),
        evaluations=sections.evaluation_panels(run),
        shares=sections.share_panels(run),
        diagnostics=diagnostics.diagnostic_panels(run),
        times=sections.time_panels(run),
        memory=sections.memory_panels(run),
        others=other,
        phases=phase_table(run.training),
        samples=samples,
        evolution=evolution,
        judge=judge_table(run.judge),
        alarms=alarm_table(run)[-MOST_ALARMS:],
        recipe=run.recipe_text,
        environment=described[:MOST_ENVIRONMENT_ROWS],
        started=status_text(run, "started"),
        notes=notes,
    )


def render_page(template: Path, **values: Any) -> str:
    """A page of this house's look: `values`, with every string of them escaped, in a template beside the caller."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["short"] = short
    return environment.get_template(template.name).render(
        # The sheet is the package's own text, and its hash must match it letter for letter.
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        version=memdiff.__version__,
        **values,
    )


def printable(value: Any) -> Any:
    """Replace what no reader should meet: control letters, lone surrogates, letters that reorder a line."""
    if isinstance(value, Markup) or not isinstance(value, str):
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


def status_text(run: RunRecord, key: str) -> str:
    """A field of status.json as text; empty where it is missing or null."""
    value = run.status.get(key)
    return "" if value is None else str(value)


def duration(seconds: float) -> str:
    """`1 h 12 min`, `3 min 20 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{int(seconds) // 60} min {seconds % 60:.0f} s"
    )


def flatten(value: object, prefix: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """Nested JSON as pairs of a dotted name and a text; lists of plain values stay on one line."""
    if isinstance(value, dict) and depth < 8:
        return [
            pair
            for key, inner in value.items()
            for pair in flatten(inner, f"{prefix}.{key}" if prefix else str(key), depth + 1)
        ]
    if isinstance(value, list):
        texts = [str(item) for item in value]
        counts = dict.fromkeys(texts)
        return [
            (prefix, ", ".join(text if texts.count(text) == 1 else f"{texts.count(text)} x {text}" for text in counts))
        ]
    return [] if value is None else [(prefix, str(value))]


def summary(run: RunRecord, described: list[tuple[str, str]]) -> str:
    """One sentence: reward from first to last, share, rounds, images, time, device, versions."""
    parts = []
    method, model = run.recipe.get("method"), run.recipe.get("model")
    if isinstance(method, dict) and isinstance(model, dict):
        parts.append(
            f"{method.get('kind', 'unknown method')} on {model.get('path') or model.get('kind', 'unknown model')}"
        )
    rewards = known(column(run.training, "reward_mean"))
    if rewards:
        parts.append(f"reward {rewards[0]:.4g} → {rewards[-1]:.4g}")
    for name, values in shares(run)[:1]:
        parts.append(f"share {name} {100 * values[0]:.1f} % → {100 * values[-1]:.1f} %")
    if run.training:
        parts.append(f"{len(run.training)} rounds")
    images = known(column(run.training, "images"))
    if images:
        parts.append(f"{images[-1]:,.0f} images")
    seconds = total_seconds(run.training)
    if seconds:
        parts.append(duration(seconds))
    parts += [text for key, text in described if key.rpartition(".")[2] in DEVICE_WORDS][:1]
    versions = {key.rpartition(".")[2]: text for key, text in described}
    parts += [f"{word} {versions[word]}" for word in VERSION_WORDS if word in versions]
    return " · ".join(parts)


def shares(run: RunRecord) -> list[tuple[str, list[float]]]:
    """Name and numbers of each share over the rounds, on fixed noise where that was measured at least twice."""
    series = []
    for name in names_of(run, "share/"):
        fixed = known(column(run.evaluations, f"evaluate/share/{name}"))
        series.append((name, fixed if len(fixed) >= 2 else known(column(run.training, f"share/{name}")) or fixed))
    return series


def total_seconds(rows: list[Row]) -> float:
    """Seconds of all phases of all rounds."""
    return math.fsum(value for key in sections.phase_keys(rows) for value in known(column(rows, key)))


def tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """The figures at the head of the page: name, value, remark."""
    rows = []
    rewards = known(column(run.training, "reward_mean"))
    if rewards:
        rows.append(("reward", f"{rewards[0]:.3g} → {rewards[-1]:.3g}", "mean of the first and the last round"))
    evaluated = known(column(run.evaluations, "evaluate/reward_mean"))
    if evaluated:
        best = best_round(run.evaluations)
        rows.append(("reward, fixed noise", f"{evaluated[0]:.3g} → {evaluated[-1]:.3g}", f"best: round {best}"))
    for name, values in shares(run)[:2]:
        rows.append(
            (f"share {name}", f"{100 * values[0]:.1f} → {100 * values[-1]:.1f}\u00a0%", "first and last measured")
        )
    if run.training:
        images = known(column(run.training, "images"))
        rows.append(("rounds", f"{len(run.training)}", f"{images[-1]:,.0f} images" if images else ""))
    seconds = total_seconds(run.training)
    if seconds:
        rows.append(("time", duration(seconds), "sum of the phases of all rounds"))
    peaks = known(column(run.training, "peak_bytes"))
    if peaks:
        rows.append(("peak memory", f"{max(peaks) / GIB:.3g} GiB", "highest of all rounds"))
    return rows


def phase_table(rows: list[Row]) -> list[tuple[str, str, str, str]]:
    """Phase, total, share of the time, median of a round."""
    total = total_seconds(rows)
    table = []
    for key in sections.phase_keys(rows):
        values = known(column(rows, key))
        spent = math.fsum(values)
        share = f"{100 * spent / total:.1f} %" if total > 0 else "n/a"
        table.append((sections.phase_name(key), duration(spent), share, duration(statistics.median(values))))
    return table


def alarm_table(run: RunRecord) -> list[tuple[int, str]]:
    """Round and text of every alarm that a guard raised."""
    rows = {row["round"]: row.get("alarms") for row in (*run.evaluations, *run.training)}
    alarms_by_round = [(number, alarms) for number, alarms in sorted(rows.items()) if isinstance(alarms, list)]
    return [(number, alarm) for number, alarms in alarms_by_round for alarm in alarms if isinstance(alarm, str)]


def judge_table(judge: Row) -> list[tuple[str, str, str]]:
    """What an independent judge counted before and after training, shares with their 95 % interval."""
    sides = [side if isinstance(side, dict) else {} for side in (judge.get("before"), judge.get("after"))]
    table = [(label, *(judge_cell(side, key) for side in sides)) for key, label in JUDGE_ROWS]
    return [(label, before, after) for label, before, after in table if (before, after) != ("n/a", "n/a")]


def judge_cell(side: Row, key: str) -> str:
    """One number of the judge as text; n/a where it is missing."""
    value = number(side.get(key))
    if math.isnan(value):
        return "n/a"
    if key == "num_images":
        return f"{value:,.0f}"
    if not key.endswith("_share"):
        return f"{value:.4g}"
    low, high = number(side.get("share_low")), number(side.get("share_high"))
    interval = f" ({100 * low:.1f} to {100 * high:.1f})" if key == "minority_share" and low <= high else ""
    return f"{100 * value:.1f} %{interval}"


def sample_pictures(run: RunRecord, notes: list[str]) -> tuple[list[Picture], Picture | None]:
    """Grids of the first, the middle, the best and the last round, and the animation; what can't be read is noted."""
    if not run.samples:
        return [], None
    rounds = sorted(run.samples)
    words = [(rounds[0], "before training" if rounds[0] == 0 else "first"), (rounds[-1], "last")]
    if len(rounds) >= 3:
        words.append((rounds[len(rounds) // 2], "middle"))
    best = best_round(run.evaluations)
    if best in run.samples:
        words.append((best, "best"))
    pictures = []
    for index in sorted({index for index, _ in words}):
        try:
            address = embed_png(run.samples[index])
        except ConfigError as error:
            notes.append(str(error))
            continue
        marks = ", ".join(word for other, word in words if other == index)
        pictures.append(Picture(f"round {index} ({marks})", address, f"Grid of samples of round {index}"))
    try:
        address = embed_evolution(run.evolution, [run.samples[index] for index in rounds])
    except ConfigError as error:
        notes.append(str(error))
        return pictures, None
    return pictures, Picture("evolution", address, f"Animation of the samples from round {rounds[0]} to {rounds[-1]}")
