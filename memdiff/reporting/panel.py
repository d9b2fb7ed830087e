"""A plot together with its words."""

from collections.abc import Sequence
from dataclasses import dataclass

from memdiff.reporting import plots
from memdiff.reporting.folder import Row, column, known
from memdiff.reporting.plots import Series


@dataclass(frozen=True)
class Panel:
    """One plot with its words. `legend` pairs a colour number with a name."""

    heading: str
    caption: str
    light: str
    dark: str
    alt: str
    legend: tuple[tuple[int, str], ...] = ()


def make_panel(
    heading: str,
    caption: str,
    svg: str,
    values: Sequence[float],
    unit: str = "",
    legend: tuple[tuple[int, str], ...] = (),
) -> Panel:
    """Wrap a plot; `values` (with their unit) are told to readers who can't see it."""
    numbers = known(list(values))
    alt = f"{heading}: plot"
    if numbers:
        alt = f"{heading}: first {numbers[0]:.4g}{unit}, last {numbers[-1]:.4g}{unit}"
    light, dark = plots.data_uris(svg)
    return Panel(heading, caption, light, dark, alt, legend)


def metric_panel(
    rows: list[Row], key: str, unit: str, caption: str, log_base: int | None = None, points: bool = False
) -> list[Panel]:
    """One column over the rounds, headed by its own name; nothing where no row has a number."""
    values = column(rows, key)
    if not known(values):
        return []
    svg = plots.line_plot([Series(column(rows, "round"), values, points=points)], "round", unit, log_base=log_base)
    heading = key if "(" in unit or unit == "value" else f"{unit[:1].upper()}{unit[1:]}"
    return [make_panel(heading, caption, svg, values)]
