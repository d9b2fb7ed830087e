"""The results' tables: update beside floor and peers, plan beside peak, and what was reported elsewhere. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from memdiff.runtime.units import GIB

Row = Mapping[str, Any]


def timing_table(rows: Sequence[Row]) -> str:
    """Each row beside the floor and TRL's of the same name; empty without any."""
    every = [row for row in rows if row["about"].get("kind") in ("timing", "peers")]
    if not every:
        return ""
    lines = [
        "| what | who | outcome | seconds an update | update / floor | update / TRL | device idle | seconds by phase |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in every:
        name, _, who = row["case"].rpartition(": ")
        figures = row["figures"]
        phases = "; ".join(f"{phase} {seconds:.2f}" for phase, seconds in figures.get("seconds_phases", {}).items())
        idle = figures.get("idle_share")
        lines.append(
            f"| {name} | {who} | {outcome_of_row(row)} | {_number(figures.get('seconds_update'), 2)} "
            f"| {_ratio(row, _named(every, f'{name}: floor'))} | {_ratio(row, _named(every, f'{name}: TRL'))} "
            f"| {'' if idle is None else f'{idle:.1%}'} | {phases} |"
        )
    return "\n".join(lines) + "\n"


def memory_table(rows: Sequence[Row]) -> str:
    """Planned beside measured, each in a process capped at its plan; empty without any."""
    every = [row for row in rows if row["about"].get("kind", "memory") == "memory"]
    if not every:
        return ""
    lines = [
        "| what | outcome | live, planned | with allowance | allocated | reserved | by live | reserved / cap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in every:
        figures = row["figures"]
        planned_live, cap = figures.get("planned_live_bytes"), figures.get("capped_bytes")
        allocated = figures.get("allocated_bytes", figures.get("peak_bytes"))  # on a CPU the ledger's
        reserved = figures.get("reserved_bytes")
        lines.append(
            f"| {row['case'].partition(': ')[2]} | {outcome_of_row(row)} | {_gib(planned_live)} "
            f"| {_gib(figures.get('planned_bytes'))} | {_gib(allocated)} | {_gib(reserved)} "
            f"| {_over(allocated, planned_live)} | {_over(reserved, cap)} |"
        )
    return "\n".join(lines) + "\n"


def gpu_table(rows: Sequence[Row]) -> str:
    """Both, whichever has rows."""
    return "\n".join(table for table in (timing_table(rows), memory_table(rows)) if table)


def reported_table(rows: Sequence[Row]) -> str:
    """Rows that somebody else's machine gave: `reported` says what is known of where."""
    lines = ["| what | planned (GiB) | allocated | reserved | seconds | how it stands |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = row["figures"]
        lines.append(
            f"| {row['case']} | {_number(figures.get('planned_gib'), 2)} | {_number(figures.get('allocated_gib'), 2)} "
            f"| {_number(figures.get('reserved_gib'), 2)} | {_number(figures.get('seconds'), 2)} | {row['outcome']} |"
        )
    return "\n".join(lines) + "\n"


def outcome_of_row(row: Row) -> str:
    """With its reason where there is one."""
    return row["outcome"] if row["outcome"] == "ok" else f"{row['outcome']}: {row.get('message', '')}".rstrip(": ")


def _named(rows: Sequence[Row], case: str) -> Row | None:
    return next((row for row in rows if row["case"] == case), None)


def _ratio(row: Row, other: Row | None) -> str:
    seconds = row["figures"].get("seconds_fastest")
    theirs = None if other is None else other["figures"].get("seconds_fastest")
    return "" if seconds is None or not theirs else f"{seconds / theirs:.2f}"


def _over(size: float | None, whole: float | None) -> str:
    return "" if size is None or not whole else f"{size / whole:.3f}"


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
