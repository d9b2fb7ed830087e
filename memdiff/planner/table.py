"""A plan as people read it."""

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from memdiff.memory.knobs import word
from memdiff.planner.plan import Plan
from memdiff.runtime.units import GIB, duration

TERA = 1e12


def show(plan: Plan, console: Console | None = None) -> None:
    """Prints the plan: what fits, what the peak is made of, how to run it, and what each knob would change."""
    (console or Console()).print(rendered(plan))


def rendered(plan: Plan) -> Group:
    """Headline, tables and notes of the plan as one group, which `show` prints."""
    parts: list[Any] = [_headline(plan), _items(plan), _phases(plan), _knobs(plan)]
    if plan.changes:
        parts.append(_changes(plan))
    parts += [Text(f"- {note}") for note in plan.notes]
    return Group(*parts)


def _headline(plan: Plan) -> Text:
    where = f"{plan.ranks} x {plan.gpu}" if plan.gpu else f"{plan.ranks} GPU(s)"
    verdict = "fits" if plan.fits else "does not fit"
    return Text(
        f"{verdict}: {plan.of_budget()}, on {where} in {plan.precision}; the most in phase "
        f"{plan.peak_phase}{f' at {plan.peak_module}' if plan.peak_module else ''}\n"
        f"a round: {plan.flops / TERA:,.0f} TFLOP on each GPU, {plan.flops / plan.flops_ideal:.2f} x that of nothing "
        f"recomputed; moves take {plan.moved_seconds:.1f} s\n"
        f"host memory: {gib(plan.host_total_bytes)} GiB for {plan.ranks} rank(s) in all; beside its process a rank has "
        f"{gib(plan.host_load_bytes)} GiB while it loads, {gib(plan.host_bytes)} while it trains\n"
        f"estimated: {duration(plan.round_seconds)} a round, {duration(3600 * plan.hours)} in all"
    )


def _items(plan: Plan) -> Table:
    table = Table(title=f"the peak, in phase {plan.peak_phase}", title_justify="left")
    table.add_column("item")
    table.add_column("GiB", justify="right")
    table.add_column("share", justify="right")
    for name, size in plan.items.items():
        table.add_row(name, gib(size), f"{size / plan.peak_bytes:.0%}")
    table.add_row("in all", gib(plan.peak_bytes), "")
    return table


def _phases(plan: Plan) -> Text:
    return Text("live GiB by phase: " + ", ".join(f"{name} {gib(size)}" for name, size in plan.phases.items()))


def _knobs(plan: Plan) -> Text:
    return Text("memory: {" + ", ".join(f"{name}: {word(value)}" for name, value in plan.knobs.items()) + "}")


def _changes(plan: Plan) -> Table:
    table = Table(title="one knob set otherwise", title_justify="left")
    table.add_column("memory:")
    table.add_column("GiB", justify="right")
    table.add_column("FLOPs", justify="right")
    table.add_column("moves, s a round", justify="right")
    for change in plan.changes:
        table.add_row(
            f"{change.knob}: {word(change.value)}",
            _signed(change.peak_bytes / GIB, 2),
            f"{change.flops / plan.flops:+.0%}",
            _signed(change.moved_seconds, 1),
        )
    return table


def _signed(number: float, digits: int) -> str:
    """With its sign, which nothing has none of."""
    rounded = round(number, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def gib(size: float) -> str:
    """Bytes as GiB with two decimals, without the unit."""
    return f"{size / GIB:.2f}"
