"""What a check has to say, and all that they say as a table."""

from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

State = Literal["ok", "warn", "fail"]
REINSTALL = "Reinstall: pip install -e . -c constraints.txt"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    state: State
    detail: str
    advice: str = ""


def as_table(findings: list[Finding]) -> Table:
    """One row a finding; markup in it is shown as it is."""
    table = Table(title="memdiff doctor", title_justify="left", expand=False)
    for heading in ("check", "state", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for finding in findings:
        table.add_row(
            Text(finding.name), Text(finding.state, colours[finding.state]), Text(finding.detail), Text(finding.advice)
        )
    return table


def first_line(text: str) -> str:
    """Of a message, at most 200 characters; empty where it is empty."""
    return (text.strip().splitlines() or [""])[0][:200]
