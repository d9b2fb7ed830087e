"""The peers' table: every row beside TRL's of the same method and steps, and whether the targets are met. No torch.

Targets (memdiff / TRL): AlignProp, steps recomputed: peak <= 0.60 at <= 1.05 of the time; steps kept: time <= 0.75.
DDPO against REINFORCE: peak <= 0.60 at <= 0.90 of the time. One setting has to meet both of a pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
MIB = 2**20


@dataclass(frozen=True)
class Target:
    """What one of the rows whose name contains `name` is to reach."""

    method: str
    name: str
    seconds: float
    peak: float | None


TARGETS = (
    Target("alignprop", "recomputed", 1.05, 0.60),
    Target("alignprop", "kept", 0.75, None),
    Target("ddpo", "", 0.90, 0.60),
)


def ratios(row: Row, peer: Row) -> tuple[float, float]:
    """(time, peak) over the peer's. The fastest update of each: what others do to the machine only adds."""
    mine, theirs = row["figures"], peer["figures"]
    return mine["seconds_fastest"] / theirs["seconds_fastest"], mine["peak_bytes"] / theirs["peak_bytes"]


def meets(target: Target, time: float, peak: float) -> bool:
    """Both where both are asked."""
    return time <= target.seconds and (target.peak is None or peak <= target.peak)


def peers_table(rows: Sequence[Row]) -> str:
    """Rows by method and steps, then a verdict a target."""
    lines = [
        "| method | steps | who | fastest (s) | median (s) | peak (MiB) | w/o weights | time / TRL | peak / TRL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    peers = {group(row): row for row in rows if row["about"]["side"] == "trl" and row["outcome"] == "ok"}
    for row in rows:
        method, steps = group(row)
        who, numbers = row["case"].split("/", 2)[2], row["figures"]
        if row["outcome"] != "ok":
            lines.append(f"| {method} | {steps} | {who} | {row['outcome']}: {row.get('message', '')} | | | | | |")
            continue
        peer = peers.get((method, steps))
        time, peak = ratios(row, peer) if peer else (None, None)
        rest = numbers["peak_bytes"] - numbers["peak_items"].get("weights", 0)
        lines.append(
            f"| {method} | {steps} | {who} | {numbers['seconds_fastest']:.2f} | {numbers['seconds_update']:.2f} "
            f"| {numbers['peak_bytes'] / MIB:.1f} | {rest / MIB:.1f} | {_times(time)} | {_times(peak)} |"
        )
    return "\n".join([*lines, "", *verdicts(rows, peers)]) + "\n"


def verdicts(rows: Sequence[Row], peers: Mapping[tuple[str, int], Row]) -> list[str]:
    """One line for each target at each number of steps: met by whom, or how near the nearest comes."""
    lines = []
    for target in TARGETS:
        for (method, steps), peer in peers.items():
            tried = {
                row["case"].split("/", 2)[2]: ratios(row, peer)
                for row in rows
                if group(row) == (method, steps) and row["about"]["side"] == "memdiff" and row["outcome"] == "ok"
            }
            tried = {name: time_and_peak for name, time_and_peak in tried.items() if target.name in name}
            if method != target.method or not tried:
                continue
            good = [name for name, (time, peak) in tried.items() if meets(target, time, peak)]
            asked = f"time <= {target.seconds:.2f}" + (f" and peak <= {target.peak:.2f}" if target.peak else "")
            near = min(tried, key=lambda name: _miss(target, *tried[name]))
            said = f"met by {'; '.join(good)}" if good else f"**missed**; nearest: {near}"
            time, peak = tried[good[0] if good else near]
            which = target.name or "any setting"
            lines.append(f"- {method}, {which}, {steps} steps: {asked}: {said} (time {time:.2f}, peak {peak:.2f})")
    return lines


def _miss(target: Target, time: float, peak: float) -> float:
    """By how much a setting is above, the worse of the two."""
    return max(time / target.seconds, peak / target.peak if target.peak else 0.0)


def group(row: Row) -> tuple[str, int]:
    """Rows that are compared with each other."""
    return row["about"]["method"], row["about"]["steps"]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
