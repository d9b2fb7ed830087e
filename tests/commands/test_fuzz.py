"""A fixed part of the trials in tests/fuzz, which are run at length by hand: `make fuzz`, docs/hostile_input.md."""

import json
from pathlib import Path

from tests.helpers.processes import run_python

SURFACES = ("samples", "prompts", "model: ddpm")
MUTANTS = 4


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    """Every one ends in a line or does its work: nothing of it is run, nothing of another folder touched."""
    table = tmp_path / "table.json"
    words = ("--seed", "0", "--count", str(MUTANTS), "--only", ",".join(SURFACES), "--mutants-alone")
    ended = run_python("-m", "tests.fuzz", *words, "--json", str(table))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(table.read_text())["rows"]
    assert set(rows) == set(SURFACES)
    for row in rows.values():
        assert row.get("read", 0) + row.get("refused", 0) == row["mutants"] == MUTANTS
    assert sum(row.get("refused", 0) for row in rows.values()) > 0


def test_mistakes_in_recipes_are_named(tmp_path: Path) -> None:
    """Three of each kind: exit code 2, the key in a line, no torch; and twenty that are right are not refused."""
    table = tmp_path / "table.json"
    ended = run_python("-m", "tests.fuzz.recipes", "--count", "45", "--valid", "20", "--json", str(table))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    content = json.loads(table.read_text())
    assert [row["count"] for row in content["table"].values()] == [3] * 15
    assert content["faults"] == content["wrongly refused"] == []
