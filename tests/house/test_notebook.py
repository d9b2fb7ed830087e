"""launch/notebooks/t4.ipynb: its cells, its commands, the versions it installs; and all of it, run."""

import ast
import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from memdiff.cli import app
from memdiff.recipe.reading import read_recipe
from memdiff.reporting.rows import read_rows
from tests.helpers.notebook import as_python, code_cells, filled, shell_lines
from tests.helpers.processes import ROOT, run

NOTEBOOK = ROOT / "launch/notebooks/t4.ipynb"
CONSTRAINTS = "constraints-py312-torch211.txt"
OTHERS = {"torch", "setuptools"}  # whose versions are the platform's
TWO_CARDS = {
    "RUNS": "runs", "RANKS": 2, "RECIPE": "sd15_alignprop_2xt4", "PLANNED": "sd15_alignprop_2xt4", "HOURS": 8.5,
    "go_on": "--resume-from /kaggle/input/it/sd15", "constraints": "file",
    "SMALL": "--set run.images_per_round=16", "GO_ON": "--resume-from runs/digits --set run.rounds=5",
}  # fmt: skip
ONE_CARD = TWO_CARDS | {"RANKS": 1, "RECIPE": "sd15_alignprop_1xt4", "PLANNED": "digits_text_draft", "go_on": ""}


def pins(file: str) -> dict[str, str]:
    """The versions of a file, by canonical name."""
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def test_the_notebook_is_whole() -> None:
    """A notebook of format 4.5 without outputs, whose cells are Python once shell lines are calls."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and cell["source"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    for cell in code_cells(NOTEBOOK):
        ast.parse(as_python(cell))
    assert "WITH_SD15 = False" in code_cells(NOTEBOOK)[0]


@pytest.mark.parametrize("names", [TWO_CARDS, ONE_CARD], ids=["two cards", "one card"])
def test_every_command_of_the_notebook_parses(names: dict[str, Any]) -> None:
    """By the command line's own parser, which runs nothing; keys that are set are keys of the recipe."""
    group: Any = typer.main.get_command(app)
    commands = [shlex.split(filled(line, names)) for line in shell_lines(NOTEBOOK) if line.startswith("memdiff ")]
    assert {words[1] for words in commands} == {"doctor", "plan", "train", "sample"}
    for _, name, *words in commands:
        parameters = group.commands[name].make_context(name, list(words)).params
        if name in ("plan", "train"):
            recipe = read_recipe(Path(parameters["recipe"]), parameters["set_"] or ())
            recipe.check_world_size(parameters["gpus"])


def test_shell_lines_are_filled_in() -> None:
    """The executor itself: expressions, indented lines, and text that only looks like one."""
    assert filled("a {x + 1} b", {"x": 2}) == "a 3 b"
    assert as_python("if a:\n    !b {c}\nd != e") == "if a:\n    _shell('b {c}', {**globals(), **locals()})\nd != e"


def test_constraints_are_those_of_the_project() -> None:
    """But for two packages; every package that memdiff asks for is in them, in a version that it takes."""
    platform, project = pins(CONSTRAINTS), pins("constraints.txt")
    assert {name: version for name, version in platform.items() if project.get(name) != version}.keys() == OTHERS
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(platform[canonicalize_name(requirement.name)]), requirement


def test_the_notebook_says_the_constraints_versions() -> None:
    """The file, Python and torch that it looks for are those that the file is for."""
    install = code_cells(NOTEBOOK)[1]
    assert CONSTRAINTS in install
    major_minor = pins(CONSTRAINTS)["torch"].rpartition(".")[0]
    assert f'startswith("{major_minor}.")' in install and major_minor.replace(".", "") in CONSTRAINTS
    version = re.search(r"version_info\[:2\] != \((\d+), (\d+)\)", install)
    assert version is not None and f"py{version[1]}{version[2]}" in CONSTRAINTS


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Every code cell, the switch off, in this environment, which has memdiff: nothing is installed. The report is
    shown; the second folder goes on from the first to five rounds, and its first three are the first's."""
    result = tmp_path / "result.json"
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    words = [sys.executable, "-m", "tests.helpers.notebook", str(NOTEBOOK), str(result)]
    done = run(words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": path})
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    read = json.loads(result.read_text())
    assert [words for words, code in read["codes"] if code != 0 and words != "memdiff doctor"] == []
    assert len(read["codes"]) == 4 and "<iframe srcdoc=" in read["shown"][0]
    rows = {name: read_rows(tmp_path / "runs" / name / "metrics.jsonl") for name in ("digits", "digits_next")}
    assert [row["round"] for row in rows["digits_next"] if row["round"]] == [1, 2, 3, 4, 5]
    assert len(rows["digits"]) == 4 and rows["digits"] == rows["digits_next"][:4]
