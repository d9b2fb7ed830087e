"""Health of the optimization, variety of the images, and whatever else a method reports.

Shapes: R rounds, K steps of the sampling chain.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from memdiff.reporting import plots
from memdiff.reporting.folder import Row, RunRecord, column, keys_with, known
from memdiff.reporting.panel import Panel, make_panel
from memdiff.reporting.plots import Series
from memdiff.reporting.quantities import DIVERSITY, HEALTH, KNOWN, OF_METHODS, Quantity, unknown
from memdiff.reporting.sections import phase_keys

MOST_OTHER_METRICS = 40
STEP_NORM = "step_gradient_norm"
SHOWN = {"round", "update", "images", "reward_mean", "reward_std", "images_in_round", "peak_bytes"} | {
    "evaluate/reward_mean",
    "evaluate/images",
    "evaluate/best",
}
SHOWN_PREFIXES = ("reward/", "reward_std/", "share/", "evaluate/reward/", "evaluate/reward_std/", "evaluate/share/")


def health(run: RunRecord) -> list[Quantity]:
    """The quantities that say whether the optimization is well, of which this run reports a number."""
    in_half = set(known(column(run.training, "loss_scale"))) - {1.0}  # in fp32 and bf16 there is none
    return [each for each in HEALTH if _is_in(run, each) and (in_half or each.key != "loss_scale")]


def others(run: RunRecord) -> tuple[list[Quantity], int]:
    """Numbers that a method adds under its own names, and how many of them are beyond what a page should hold."""
    shown = SHOWN | set(phase_keys(run.training))
    keys = [key for key in keys_with(run.training, "") if not key.startswith("evaluate/")]
    keys += keys_with(run.evaluations, "evaluate/")
    free = [key for key in keys if not key.startswith(SHOWN_PREFIXES) and key not in shown]
    free = [key for key in free if key.removeprefix("evaluate/") not in KNOWN]
    ours = [each for each in OF_METHODS if _is_in(run, each)]
    return [*ours, *map(unknown, free[:MOST_OTHER_METRICS])], max(0, len(free) - MOST_OTHER_METRICS)


def changing(run: RunRecord, quantities: Iterable[Quantity]) -> list[Panel]:
    """A plot of each that is not the same in every round."""
    return [_panel(run, each) for each in quantities if not is_constant(_values(run, each))]


def unchanging(run: RunRecord, quantities: Iterable[Quantity]) -> list[tuple[str, str, str]]:
    """Of the others heading, number and words: a line of text says it all."""
    return [
        (each.heading, plain_number(known(_values(run, each))[-1]), each.caption)
        for each in quantities
        if is_constant(_values(run, each))
    ]


def is_constant(values: Sequence[float]) -> bool:
    """Whether at least two numbers are known and they differ by rounding alone."""
    numbers = known(list(values))
    largest = max(map(abs, numbers), default=0.0)
    return len(numbers) >= 2 and max(numbers) - min(numbers) <= plots.SMALLEST_SPREAD * largest


def plain_number(value: float) -> str:
    """`1,600`, `0.00048`, `3.2e-05`: four digits that count."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"


def diversity_panels(run: RunRecord) -> list[Panel]:
    """How much images differ, those of each round and those from fixed noise."""
    panels = []
    for each in DIVERSITY:
        lines = [(0, "images of the round", run.training, each.key), (1, "fixed noise", run.evaluations, "")]
        series, legend = [], []
        for colour, name, rows, key in lines:
            values = column(rows, key or f"evaluate/{each.key}")
            if known(values):
                series.append(Series(column(rows, "round"), values, colour=colour, points=not key))
                legend.append((colour, name))
        if series:
            svg = plots.line_plot(series, "round", each.axis)
            panels.append(make_panel(each.heading, each.caption, svg, series[-1].y, legend=tuple(legend)))
    return panels


def step_norm_panels(rows: list[Row]) -> list[Panel]:
    """Gradient norm of each step of the chain: chosen rounds as lines, all rounds as a heat map."""
    rounds, norms_RK = step_norms(rows)
    if not len(rounds) or not np.isfinite(norms_RK).any():
        return []
    drawn = np.flatnonzero(np.isfinite(norms_RK).any(axis=1)).tolist()
    chosen = sorted({drawn[0], drawn[len(drawn) // 2], drawn[-1]})
    panels = [
        make_panel(
            "Gradient norm by step",
            "Which steps of the chain the policy learns from. Gaps are steps without a density. With uniform step "
            "weights the last steps peak, where the noise is smallest; balanced ones are near level.",
            plots.step_lines(norms_RK[chosen], range(len(chosen)), "gradient norm"),
            list(norms_RK[chosen[-1]]),
            legend=tuple((colour, f"round {rounds[index]:.0f}") for colour, index in enumerate(chosen)),
        )
    ]
    if len(rounds) >= 3 and (norms_RK > plots.SMALLEST_POSITIVE).any():
        panels.append(
            make_panel(
                "Gradient norm by step and round",
                "All rounds side by side, early steps on top. Should keep its pattern; a bright column is a bad "
                "round, a row that lights up a step that takes over.",
                plots.heat_map(rounds, norms_RK, "gradient norm"),
                [],
            )
        )
    return panels


def step_norms(rows: list[Row]) -> tuple[list[float], np.ndarray]:
    """Rounds and norms_RK of the rows that report them; NaN for a step without density and for shorter chains."""
    listed = [row for row in rows if isinstance(row.get(STEP_NORM), list) and row[STEP_NORM]]
    length = max((len(row[STEP_NORM]) for row in listed), default=0)
    norms_RK = np.full((len(listed), length), np.nan)
    for index, row in enumerate(listed):
        norms_RK[index, : len(row[STEP_NORM])] = known_or_gap(row[STEP_NORM])
    return column(listed, "round"), norms_RK


def known_or_gap(values: list[object]) -> list[float]:
    """Numbers of a JSON list, NaN for anything else."""
    return column([{"value": value} for value in values], "value")


def _is_in(run: RunRecord, quantity: Quantity) -> bool:
    return bool(known(_values(run, quantity)))


def _rows(run: RunRecord, quantity: Quantity) -> list[Row]:
    return run.evaluations if quantity.key.startswith("evaluate/") else run.training


def _values(run: RunRecord, quantity: Quantity) -> list[float]:
    return column(_rows(run, quantity), quantity.key)


def _panel(run: RunRecord, quantity: Quantity) -> Panel:
    values, rounds = _values(run, quantity), column(_rows(run, quantity), "round")
    series = Series(rounds, values, points=quantity.key.startswith("evaluate/"))
    svg = plots.line_plot([series], "round", quantity.axis, log_base=quantity.log_base)
    return make_panel(quantity.heading, quantity.caption, svg, values)
