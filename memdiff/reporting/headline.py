"""The head of the report: a title, one sentence, the figures that count."""

import math

from memdiff.reporting import sections
from memdiff.reporting.folder import Row, RunRecord, best_round, column, known, names_of, number
from memdiff.reporting.words import title_of
from memdiff.runtime.units import GIB, duration

DEVICE_WORDS = ("device", "devices", "device_name", "gpu", "gpus", "accelerator")
VERSION_WORDS = ("memdiff", "python", "torch", "deepspeed", "diffusers")


def heading(run: RunRecord) -> str:
    """What was trained for what, by the recipe; the folder's name where that does not say it."""
    return title_of(run.recipe) or run.path.resolve().name


def status_text(run: RunRecord, key: str) -> str:
    """A field of status.json as text; empty where it is missing or null."""
    value = run.status.get(key)
    return "" if value is None else str(value)


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
    """One sentence: reward from first to last, rounds, images, time, device, versions."""
    parts = []
    rewards = known(column(run.training, "reward_mean"))
    if rewards:
        parts.append(f"reward {rewards[0]:.4g} → {rewards[-1]:.4g}")
    if run.training:
        parts.append(f"{len(run.training)} rounds")
    images = known(column(run.training, "images"))
    if images:
        parts.append(f"{images[-1]:,.0f} images")
    seconds = full_seconds(run)
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


def full_seconds(run: RunRecord) -> float:
    """From the command to the end, over all its starts: loading, evaluations and checkpoints too.

    Where status.json does not say it, the phases of the rounds.
    """
    measured, phases = number(run.status.get("seconds")), total_seconds(run.training)
    return measured if measured > phases else phases


def figures(run: RunRecord) -> list[tuple[str, str, str]]:
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
    seconds, phases = full_seconds(run), total_seconds(run.training)
    if seconds:
        remark = "sum of the phases of all rounds"
        if seconds > phases:
            remark = f"rounds {duration(phases)}, the rest loads, evaluates and saves"
        rows.append(("time", duration(seconds), remark))
    peaks = known(column(run.training, "peak_bytes"))
    if peaks:
        rows.append(("peak memory", f"{max(peaks) / GIB:.3g} GiB", "highest of all rounds"))
    return rows
