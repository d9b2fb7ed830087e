"""results/growth.png and results/timeline.png, from the rows. No torch."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.runner import Row, read_rows

MIB = 2**20
ORDER = ("weights", "gradients", "optimizer", "engine buckets", "trajectory", "reward", "decoder", "activations")
COLOURS = ("#4c566a", "#8fbcbb", "#81a1c1", "#5e81ac", "#a3be8c", "#ebcb8b", "#d08770", "#bf616a")
TITLES = {"recomputed": "steps recomputed: one graph at a time", "kept": "steps kept: every graph until its pull"}


SERIES = {
    "recomputed": "last K of 50 steps, run again",
    "kept": "last K of 50 steps, graphs kept",
    "length": "a chain of K steps, run again",
}


def draw_all(results: Path) -> None:
    """Those whose rows are there."""
    chain = [row for row in read_rows(results / "chain.jsonl") if row["outcome"] == "ok"]
    if chain:
        draw_growth(chain, results / "growth.png")
    lines = [row for row in read_rows(results / "cpu.jsonl") if row["figures"].get("timeline")]
    if lines:
        draw_timeline(lines, results / "timeline.png")


def draw_growth(rows: Sequence[Row], file: Path) -> None:
    """Peak and seconds against the number of differentiated steps."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for series, label in SERIES.items():
        mine = sorted((row["about"]["depth"], row["figures"]) for row in rows if row["about"]["series"] == series)
        depths = [depth for depth, _ in mine]
        left.plot(depths, [numbers["peak_bytes"] / MIB for _, numbers in mine], marker="o", markersize=3, label=label)
        right.plot(depths, [numbers["seconds_update"] for _, numbers in mine], marker="o", markersize=3, label=label)
    left.set(xlabel="differentiated steps K", ylabel="peak (MiB)", ylim=(0, None))
    right.set(xlabel="differentiated steps K", ylabel="seconds an update", ylim=(0, None))
    left.legend(frameon=False)
    figure.savefig(file, dpi=110)


def draw_timeline(rows: Sequence[Row], file: Path) -> None:
    """Live bytes by category through one update, its phases above; time runs in allocations, not in seconds."""
    figure = Figure(figsize=(10, 2.9 * len(rows)), layout="constrained")
    for axis, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        line = row["figures"]["timeline"]
        known = [name for name in ORDER if name in line["live_bytes"]]
        stack = [[size / MIB for size in line["live_bytes"][name]] for name in known]
        points = range(len(line["phases"]))
        axis.stackplot(points, stack, labels=known, colors=[COLOURS[ORDER.index(name)] for name in known])
        for start, stop, phase in stretches(line["phases"]):
            axis.axvline(start, color="black", linewidth=0.4)
            if phase and stop - start > len(points) / 20:
                axis.text((start + stop) / 2, axis.get_ylim()[1], phase, ha="center", va="bottom", fontsize=8)
        name = row["case"].partition("/")[2]
        axis.set(xlabel="the update, in allocations", ylabel="live MiB", xlim=(0, len(points) - 1), ylim=(0, None))
        axis.set_xticks([])  # its points are stretches of allocations
        axis.set_title(TITLES.get(name, name), fontsize=9, pad=14, loc="left")
        axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    figure.savefig(file, dpi=110)


def stretches(phases: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first, one past the last, name) of each run of equal phases."""
    spans: list[tuple[int, int, str]] = []
    for number, phase in enumerate(phases):
        if spans and spans[-1][2] == phase:
            spans[-1] = (spans[-1][0], number + 1, phase)
        else:
            spans.append((number, number + 1, phase))
    return spans
