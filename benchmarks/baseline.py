"""Whether new rows are as good as stored ones: memory within 1 %, speed within 15 %.

Memory is a property of the code and its libraries, and is compared wherever torch's version is the same. Seconds are
one machine's, and are compared only on the like of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.runner import Row

TOLERANCES = {"peak_bytes": 0.01, "flops": 0.01, "seconds_update": 0.15}  # smaller is better in all of them
SAME_MACHINE = ("platform", "cpu", "cores", "device", "threads")
Verdict = Literal["worse", "better", "same", "not compared"]


@dataclass(frozen=True)
class Finding:
    """One figure of one case against its baseline."""

    case: str
    figure: str
    verdict: Verdict
    message: str


def compare(rows: Sequence[Row], baseline: Sequence[Row]) -> list[Finding]:
    """Every checked figure of every row; a row without a baseline is `not compared`."""
    stored = {row["case"]: row for row in baseline}
    findings: list[Finding] = []
    for row in rows:
        old = stored.get(row["case"])
        if old is None:
            findings.append(Finding(row["case"], "all", "not compared", "no baseline"))
        elif row["outcome"] != old["outcome"]:
            verdict = "better" if row["outcome"] == "ok" else "worse"
            text = f"outcome {old['outcome']} -> {row['outcome']} {row.get('message', '')}".rstrip()
            findings.append(Finding(row["case"], "outcome", verdict, text))
        else:
            findings += _figures(row, old)
    gone = stored.keys() - {row["case"] for row in rows}
    return findings + [Finding(name, "all", "not compared", "in the baseline only") for name in sorted(gone)]


def _figures(row: Row, old: Row) -> list[Finding]:
    findings = []
    for figure, tolerance in TOLERANCES.items():
        if figure not in row["figures"] or figure not in old["figures"]:
            continue
        new, was = float(row["figures"][figure]), float(old["figures"][figure])
        why = _incomparable(figure, row, old)
        if why is not None:
            findings.append(Finding(row["case"], figure, "not compared", why))
            continue
        change = round(new / was - 1, 9) if was else (0.0 if new == was else float("inf"))
        verdict: Verdict = "worse" if change > tolerance else "better" if change < -tolerance else "same"
        findings.append(Finding(row["case"], figure, verdict, f"{was:,.6g} -> {new:,.6g} ({change:+.1%})"))
    return findings


def _incomparable(figure: str, row: Row, old: Row) -> str | None:
    """Why two numbers say nothing about each other; None where they do."""
    keys: dict[str, Any] = {"settings": (row["settings"], old["settings"])}
    new_from, old_from = row["provenance"], old["provenance"]
    names = SAME_MACHINE if figure.startswith("seconds") else ("torch",)
    keys |= {name: (new_from.get(name), old_from.get(name)) for name in names}
    different = [name for name, (new, was) in keys.items() if new != was]
    return f"other {', '.join(different)}" if different else None


def failed(findings: Sequence[Finding]) -> bool:
    """Whether anything got worse."""
    return any(finding.verdict == "worse" for finding in findings)


def report(suite: str, findings: Sequence[Finding]) -> str:
    """A line for everything that is not the same, and a count."""
    lines = [
        f"{finding.verdict}: {suite} {finding.case} {finding.figure}: {finding.message}"
        for finding in findings
        if finding.verdict != "same"
    ]
    same = sum(finding.verdict == "same" for finding in findings)
    return "\n".join([*lines, f"{suite}: {same} figures as in the baseline, {len(lines)} not"])
