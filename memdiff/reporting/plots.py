"""The report's plots, each an SVG without a single string of the run in it.

Names of rewards and metrics stand in the page, where they are escaped, and never in a plot: matplotlib would read `$`
as mathematics, drop labels that begin with `_`, and warn about letters that its font lacks.

Shapes: R rounds, K steps of the sampling chain.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

SIZE_INCHES = (4.2, 2.7)  # a phone of 375 px shows this at 0.8 of its size: 10.5 pt are 11 px there
INK, MUTED, GRID = "#1f2328", "#59636e", "#d1d9e0"
SMALLEST_SPREAD, LEAST_MARGIN = 1e-4, 0.05  # of the largest value: less is rounding; what is shown around it
SMALLEST_POSITIVE = 1e-100  # below it logarithmic axes fail on subnormal numbers
COLOURS = ("#0b62c4", "#c2500a", "#0e7f64", "#8146c2", "#a8324a", "#7a6a00")
# A plot is drawn once, for a light page; the dark one is the same file with these colours exchanged.
DARK = {
    INK: "#e6edf3",
    MUTED: "#9aa4af",
    GRID: "#30363d",
    **dict(zip(COLOURS, ("#62a9ff", "#f0914a", "#43c59e", "#b78bf2", "#f0768b", "#cdb93c"), strict=True)),
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "memdiff",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Series:
    """Points of one colour: x, y and, where known, the lower and upper edge of a band. NaN is a gap."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: int = 0
    points: bool = False  # measured now and then: markers and error bars instead of a line and a band


def line_plot(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    marks: Sequence[tuple[float, float]] = (),
    levels: Sequence[tuple[float, int]] = (),
    log_base: int | None = None,
    from_zero: bool = False,
) -> str:
    """SVG of lines with bands; `marks` are (x, y) of stars, `levels` (y, colour) of dashed horizontal lines.

    log_base (None: linear) is taken only where every value is above zero and they span a power of it;
    from_zero makes the axis begin at zero.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(x_label, y_label)
        for one in series:
            _draw(axes, one)
        for level, colour in levels:
            axes.axhline(level, color=COLOURS[colour], linestyle=(0, (5, 3)), linewidth=1.2)
        if marks:
            axes.plot(*zip(*marks, strict=True), "*", color=COLOURS[1], markersize=12, zorder=5)
        values = np.concatenate([np.asarray(one.y, dtype=float) for one in series])
        if log_base is not None and np.nanmin(values) > SMALLEST_POSITIVE and _spans(values, log_base):
            _log_axis(axes, log_base)
        elif from_zero:
            axes.set_ylim(bottom=0)
        else:
            _widen(axes, values)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        return _svg(figure)


def stacked_bars(rounds: Sequence[float], phases: Sequence[Sequence[float]], y_label: str) -> str:
    """SVG of one bar a round, split into phases in the order of COLOURS; NaN counts as zero."""
    heights = np.nan_to_num(np.asarray(phases, dtype=float))
    edges = np.vstack([np.zeros(len(rounds)), np.cumsum(heights, axis=0)])
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("round", y_label)
        for index, (low, high) in enumerate(pairwise(edges)):
            colour = COLOURS[index % len(COLOURS)]
            if len(rounds) <= 100:
                axes.bar(rounds, high - low, bottom=low, width=0.85, color=colour, linewidth=0)
            else:  # a rectangle a round and phase would make the file large
                axes.fill_between(rounds, low, high, step="mid", color=colour, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        return _svg(figure)


def step_lines(norms_RK: np.ndarray, colours: Sequence[int], y_label: str) -> str:
    """SVG of one line a chosen round over the K steps of the chain; NaN (no density) is a gap."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("step of the chain (0: from pure noise)", y_label)
        for norms_K, colour in zip(norms_RK, colours, strict=True):
            axes.plot(norms_K, color=COLOURS[colour], marker="o", markersize=2.5)
        if np.nanmin(norms_RK) > SMALLEST_POSITIVE and _spans(norms_RK, 10):
            _log_axis(axes, 10)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        return _svg(figure)


def heat_map(rounds: Sequence[float], norms_RK: np.ndarray, label: str) -> str:
    """SVG of a matrix, rounds (drawn one beside the other, in order) by K steps; NaN and values <= 0 stay empty."""
    norms_RK = np.where(norms_RK > SMALLEST_POSITIVE, norms_RK, np.nan)
    lowest, highest = np.nanmin(norms_RK), np.nanmax(norms_RK)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("round", "step of the chain")
        axes.grid(False)
        image = axes.imshow(
            norms_RK.T,
            aspect="auto",
            interpolation="nearest",
            norm=LogNorm(lowest, highest if highest > lowest else lowest * 1.01),
            extent=(-0.5, len(rounds) - 0.5, norms_RK.shape[1] - 0.5, -0.5),
        )
        ticks = sorted({round(index) for index in np.linspace(0, len(rounds) - 1, 6)})
        axes.set_xticks(ticks, [f"{rounds[index]:.0f}" for index in ticks])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        figure.colorbar(image, ax=axes, label=label)
        return _svg(figure)


def data_uris(svg: str) -> tuple[str, str]:
    """The `data:` addresses of a plot for a light and for a dark page."""
    dark = svg
    for light_colour, dark_colour in DARK.items():
        dark = dark.replace(light_colour, dark_colour)
    return _data_uri(svg), _data_uri(dark)


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _spans(values: np.ndarray, base: int) -> bool:
    """Whether they span a power of the base: over less a logarithmic axis has a tick or none."""
    return float(np.nanmax(values)) >= base * float(np.nanmin(values))


def _log_axis(axes: Axes, base: int) -> None:
    """Plain numbers at the ticks where they are short; between powers too where the values span less than two."""
    axes.set_yscale("log", base=base)
    low, high = axes.get_ylim()
    if base == 10 and high / low < 100:
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    if low >= 1e-4 and high <= 1e6:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _widen(axes: Axes, values: np.ndarray) -> None:
    """Values that hardly differ are drawn as a flat line, not as noise at an offset."""
    low, high = np.nanmin(values), np.nanmax(values)
    largest = max(abs(low), abs(high))
    if high - low >= SMALLEST_SPREAD * largest and high > low:
        return
    margin = LEAST_MARGIN * largest if largest > 0 else 1.0
    axes.set_ylim(0 if largest == 0 else low - margin, high + margin)


def _draw(axes: Axes, series: Series) -> None:
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    colour = COLOURS[series.colour % len(COLOURS)]
    finite = np.isfinite(y)
    if series.points:
        axes.plot(x[finite], y[finite], "o-", color=colour, markersize=4.5, linewidth=1.2)
    else:
        # A value between two gaps is a line of no length: dots keep it in sight.
        axes.plot(x, y, color=colour, marker="o", markersize=2.5 if finite.sum() <= 40 else 0)
    if series.low is None or series.high is None:
        return
    low, high = np.asarray(series.low, dtype=float), np.asarray(series.high, dtype=float)
    known = finite & np.isfinite(low) & np.isfinite(high)
    if series.points or known.sum() == 1:
        spans = np.clip(np.stack([y - low, high - y])[:, known], 0, None)
        axes.errorbar(x[known], y[known], yerr=spans, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5)
    else:
        axes.fill_between(x, low, high, where=known, color=colour, alpha=0.18, linewidth=0)


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue().replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans'")
