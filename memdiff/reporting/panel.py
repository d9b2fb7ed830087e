"""A plot together with its words."""

from collections.abc import Sequence
from dataclasses import dataclass

from memdiff.reporting import plots
from memdiff.reporting.folder import known


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
