"""README.md's tables and pictures, from results/*.jsonl. No torch.

A table lies between `<!-- table NAME -->` and `<!-- end NAME -->`; what stands there is replaced. Under each: where its
numbers come from, as the rows say it. A suite without results says so.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import pictures
from benchmarks.gpu.table import gpu_table, reported_table
from benchmarks.peers.verdict import peers_table
from benchmarks.provenance import ROOT
from benchmarks.runner import RESULTS, Row, read_rows

README = ROOT / "benchmarks" / "README.md"
MIB, GIB, TERA = 2**20, 2**30, 1e12
NOTHING = "not measured yet"
_NO_ROW: Row = {"figures": {}, "outcome": ""}


def write_all(readme: Path = README, results: Path = RESULTS) -> None:
    """Everything that is generated."""
    text = readme.read_text()
    for name, (suite, table) in TABLES.items():
        every = read_rows(results / f"{suite}.jsonl")
        rows = [row for row in every if row["about"].get("table", name) == name]
        made = table(rows) if rows else ""
        text = between(text, name, f"{made}\n{sources(rows)}" if made else f"*{NOTHING}*")
    readme.write_text(text)
    pictures.draw_all(results)


def between(text: str, name: str, inside: str) -> str:
    """`text` with what stands between the markers of `name` replaced. ValueError where they are missing."""
    start, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    head, start_marker, rest = text.partition(start)
    _, found_end, tail = rest.partition(end)
    if not start_marker or not found_end:
        raise ValueError(f"the README has no markers {start} ... {end}")
    return f"{head}{start}\n{inside}\n{end}{tail}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with a line per row and a newline at its end."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def sources(rows: Sequence[Row]) -> str:
    """One line for each different origin of the rows."""
    seen: dict[str, int] = {}
    for row in rows:
        text = origin(row["provenance"])
        seen[text] = seen.get(text, 0) + 1
    return "\n".join(f"*{count} of {len(rows)} rows: {text}*  " for text, count in seen.items())


def origin(provenance: Mapping[str, Any]) -> str:
    """Commit, versions, device, in one line; a tree with changes, and a machine that others used, are said."""
    commit = provenance.get("commit") or "no commit"
    changes = "" if provenance.get("clean") else " with uncommitted changes"
    packages = ", ".join(
        f"{name} {provenance[name]}" for name in ("torch", "diffusers", "trl", "deepspeed") if name in provenance
    )
    where = f"{provenance.get('device')}" + (f", driver {provenance['driver']}" if provenance.get("driver") else "")
    if provenance.get("device") == "CPU":
        where = f"{provenance.get('cpu')}, {provenance.get('cores')} cores, {provenance.get('threads')} threads"
    busy = provenance.get("busy") or 0.0
    shared = ", a machine that others were using" if busy > 0.5 * (provenance.get("cores") or 1) else ""
    return f"{provenance.get('date')}, commit {commit}{changes}; {packages}; {where}{shared}"


def figure(row: Row, key: str, unit: float = 1.0, digits: int = 1) -> str:
    """A number of a row in units; the outcome where it has none."""
    value = row["figures"].get(key)
    if value is None:
        return row["outcome"] if row["outcome"] != "ok" else ""
    return f"{value / unit:,.{digits}f}"


def methods_table(rows: Sequence[Row]) -> str:
    """Suite cpu: every method."""
    return markdown(
        ["model", "method", "peak (MiB)", "of it resident", "peak in", "seconds an update", "GFLOP an update"],
        [
            [
                row["about"]["model"], row["case"].partition("/")[2], figure(row, "peak_bytes", MIB),
                figure(row, "resident_bytes", MIB), peak_phase(row), figure(row, "seconds_update", digits=2),
                figure(row, "flops", 1e9),
            ]
            for row in rows
        ],
    )  # fmt: skip


def knobs_table(rows: Sequence[Row]) -> str:
    """Suite cpu: every knob alone, beside the first row."""
    first = rows[0]["figures"]
    return markdown(
        ["knob", "peak (MiB)", "against resident", "seconds an update", "against resident"],
        [
            [
                row["case"].partition("/")[2], figure(row, "peak_bytes", MIB), times(row, first, "peak_bytes"),
                figure(row, "seconds_update", digits=2), times(row, first, "seconds_update"),
            ]
            for row in rows
        ],
    )  # fmt: skip


def peak_phase(row: Row) -> str:
    """Where the most lived."""
    phases = row["figures"].get("peak_phases") or {}
    return max(phases, key=phases.__getitem__) if phases else ""


def times(row: Row, first: Mapping[str, Any], key: str) -> str:
    """A ratio to another row's figure."""
    if key not in row["figures"] or not first.get(key):
        return ""
    return f"{row['figures'][key] / first[key]:.2f} x"


def chain_table(rows: Sequence[Row]) -> str:
    """Suite chain: peak and seconds by K, the three series side by side."""
    indexed_rows = {(row["about"]["series"], row["about"]["depth"]): row for row in rows}
    depths = sorted({depth for _, depth in indexed_rows})
    names = ("recomputed", "kept", "length")
    return markdown(
        ["K", *(f"{name}: MiB" for name in names), *(f"{name}: s" for name in names)],
        [
            [
                str(depth),
                *(figure(indexed_rows.get((name, depth), _NO_ROW), "peak_bytes", MIB) for name in names),
                *(figure(indexed_rows.get((name, depth), _NO_ROW), "seconds_update", digits=2) for name in names),
            ]
            for depth in depths
        ],
    )  # fmt: skip


def world_table(rows: Sequence[Row]) -> str:
    """Suite world: one rank's peak and the round's seconds by ranks."""
    return markdown(
        ["method", "ranks", "peak of a rank (MiB)", "seconds a round", "images a second"],
        [
            [
                row["about"]["method"], str(row["ranks"]), figure(row, "peak_bytes", MIB),
                figure(row, "seconds_update", digits=2), figure(row, "images_per_second", digits=2),
            ]
            for row in rows
        ],
    )  # fmt: skip


def plan_table(rows: Sequence[Row]) -> str:
    """Suite plan: simulated; every knob beside `knob_none` of its recipe."""
    none = {row["about"]["recipe"]: row["figures"] for row in rows if row["about"]["setting"] == "knob_none"}
    lines = []
    for row in rows:
        numbers, about = row["figures"], row["about"]
        first = none.get(about["recipe"], {})
        if "peak_bytes" not in numbers:
            lines.append([about["recipe"], about["setting"], row["outcome"], *[""] * 7])
            continue
        lines.append(
            [
                about["recipe"], about["setting"], f"{numbers['peak_bytes'] / GIB:.2f}", numbers["peak_phase"],
                "yes" if numbers["fits"] else "no", difference(row, first, "peak_bytes", GIB, "GiB"),
                f"{numbers['flops'] / numbers['flops_ideal']:.2f} x", f"{numbers['moved_seconds']:.1f}",
                f"{numbers['round_seconds'] / 60:.1f}",
                describe_knobs(numbers["knobs"]) if "knob" not in about["setting"] else "",
            ]
        )  # fmt: skip
    heads = [
        "recipe", "setting", "peak (GiB)", "in", "fits", "against knob_none", "FLOPs / ideal", "moved (s a round)",
        "minutes a round, estimated", "chosen",
    ]  # fmt: skip
    return markdown(heads, lines)


def difference(row: Row, first: Mapping[str, Any], key: str, unit: float, name: str) -> str:
    """What a knob saves or costs."""
    if key not in first:
        return ""
    return f"{(row['figures'][key] - first[key]) / unit:+.2f} {name}"


def describe_knobs(knobs: Mapping[str, Any]) -> str:
    """Knobs that are not at rest."""
    return ", ".join(
        name if value is True else f"{name} {value}" for name, value in knobs.items() if value not in (False, 0, "gpu")
    )


def sd15_table(rows: Sequence[Row]) -> str:
    """Suite peers_sd15: live bytes. A plan's peak is given without the allowances that it adds for a real card."""
    lines = []
    for row in rows:
        numbers = row["figures"]
        allowed = sum((numbers.get("items") or {}).get(name, 0) for name in ("allowance", "workspace", "fragmentation"))
        live = numbers["peak_bytes"] - allowed if "peak_bytes" in numbers else None
        lines.append(
            [
                row["case"],
                row["outcome"] if live is None else f"{live / GIB:.2f}",
                figure(row, "flops", TERA),
                figure(row, "moved_seconds"),
            ]
        )
    return markdown(["who", "peak, live (GiB)", "TFLOP an update", "moved over PCIe (s)"], lines)


TABLES: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "peers": ("peers", peers_table),
    "peers_sd15": ("peers_sd15", sd15_table),
    "methods": ("cpu", methods_table),
    "knobs_reinforce": ("cpu", knobs_table),
    "knobs_draft": ("cpu", knobs_table),
    "chain": ("chain", chain_table),
    "world": ("world", world_table),
    "plan": ("plan", plan_table),
    "gpu": ("gpu", gpu_table),
    "gpu_reported": ("gpu_reported", reported_table),
}
