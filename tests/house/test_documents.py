"""What README, CONTRIBUTING and the rooms' own words say of the tree is so."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

import memdiff
from memdiff.methods.config import MethodConfig
from memdiff.models.config import ModelConfig
from memdiff.rewards.config import RewardPart
from tests.house.rooms import FILES, ORDER, PACKAGE, ROOT, room_of

DOCUMENTS = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tests/README.md", "benchmarks/README.md", "launch/README.md"),
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md"))),
)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PLACEHOLDERS = ("KIND", "FAMILY")
# In run folders, among metrics, in other trainers' repositories.
ELSEWHERE = (
    *("runs/", "results/", "model/", "model_best/", "checkpoints/", "samples/"),
    *("evaluate/", "config/base.py", "config/align_prop.py"),
)


def paths_in(text: str) -> Iterator[str]:
    """What stands in backticks and looks like a file or a folder of the tree, without a test's name behind it."""
    for word in re.findall(r"`([\w./-]+(?:::\w+)?)`", text):
        path = word.partition("::")[0]
        if "/" in path and (path.endswith((".py", ".md", ".yaml", ".json", ".sh", "/")) or "::" in word):
            yield word


def resolved(word: str, near: Path) -> Path | None:
    """The file or folder that a document means: named from its own folder, the root, the package or the tests."""
    path = word.partition("::")[0]
    places = [near, ROOT, PACKAGE, ROOT / "tests", ROOT / "benchmarks", ROOT / "launch"]
    return next((place / path for place in places if (place / path).exists()), None)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_documents_name_are_there(document: str):
    """Tests by name too: `FILE::test_name` is a function of that file."""
    near, missing = (ROOT / document).parent, []
    for word in paths_in((ROOT / document).read_text()):
        if word.startswith(ELSEWHERE) or any(placeholder in word for placeholder in PLACEHOLDERS):
            continue
        file, _, test = word.partition("::")
        path = resolved(word, near)
        if path is None or (test and f"def {test}(" not in path.read_text()):
            missing.append(file + (f"::{test}" if test else ""))
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_document_waits_for_a_figure(document: str):
    """Words that hold a place until something is measured or written."""
    waiting = re.findall(r"\b(?:MEASURED|FIGURES?|TODO|TBD|FIXME|XXX)\b", (ROOT / document).read_text())
    assert waiting == []


def installed_by(text: str) -> Iterator[str]:
    """The requirements that a text tells to install with pip, without its options and what stands in braces."""
    for command in re.findall(r"pip install ((?:'[^']*'|[^\s`;,'\"]+ ?)+)", text):
        words = re.findall(r"'[^']*'|\S+", command)
        for before, word in zip(["", *words], words, strict=False):
            if not word.startswith(("-", "{")) and before not in ("-c", "-r"):
                yield word.strip("'")


def test_what_is_to_be_installed_can_be_had():
    """memdiff is on no index: extras are a checkout's, and are there; others by the bounds that memdiff has them in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = [*project["dependencies"], *(each for several in extras.values() for each in several)]
    places = [*map(ROOT.joinpath, DOCUMENTS), *PACKAGE.rglob("*.py"), *(ROOT / "launch").rglob("*.*")]
    said = {word for place in places if place.is_file() for word in installed_by(place.read_text(errors="replace"))}
    assert {".[jpeg]", "torchmetrics>=1.8,<2", "pyarrow"} <= said
    for word in said:
        assert re.match(r"memdiff\b", word) is None, word
        if word.startswith(".["):
            assert {*re.findall(r"\w+", word)} <= {*extras}, word
        elif re.search(r"[<>=]", word):
            assert word in known, word


def test_each_room_lists_its_files():
    """A room's docstring: what it is for, then a line for each of its files and folders, and for no other."""
    for init in sorted(PACKAGE.rglob("__init__.py")):
        if init.parent == PACKAGE:
            continue
        docstring = ast.get_docstring(ast.parse(init.read_text())) or ""
        listed = re.findall(r"^(\w+/?) {2,}\S", docstring, re.MULTILINE)
        files = {file.stem for file in init.parent.glob("*.py")} - {"__init__"}
        folders = {f"{folder.name}/" for folder in init.parent.iterdir() if (folder / "__init__.py").is_file()}
        assert sorted(listed) == sorted(files | folders), init


def test_the_readme_shows_each_room_on_one_line():
    """In the tree at its end, in the order of imports."""
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    shown = re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)
    rooms = [room for line in ORDER for room in line if (PACKAGE / room).is_dir()]
    assert shown == rooms


def test_each_invariant_has_its_tests():
    """CONTRIBUTING numbers them; the tests' README maps each number to tests."""
    numbers = re.findall(r"^(\d+)\. ", CONTRIBUTING.partition("## Invariants")[2], re.MULTILINE)
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "tests/README.md").read_text(), re.MULTILINE))
    assert numbers == sorted(numbers) == list(rows)
    assert all(list(paths_in(row)) for row in rows.values())


def sections_of(union: object) -> list[type]:
    """The members of a tagged union of recipe sections."""
    return [member for member in get_args(get_args(union)[0]) if isinstance(member, type)]


HOW_TO_ADD = {"A new method": (MethodConfig, "methods"), "A new reward": (RewardPart, "rewards"),
              "A new model": (ModelConfig, "models")}  # fmt: skip


@pytest.mark.parametrize("heading", HOW_TO_ADD)
def test_who_adds_something_touches_the_listed_files_alone(heading: str):
    """Outside its room a section's class is named only where CONTRIBUTING's list for its kind says so."""
    union, room = HOW_TO_ADD[heading]
    section = re.search(rf"^### {heading}\n(.*?)(?=^#)", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    assert section is not None
    listed = {word for word in paths_in(section[1]) if not any(placeholder in word for placeholder in PLACEHOLDERS)}
    classes = sections_of(union)
    assert len(classes) >= 4
    for module, file in FILES.items():
        if not module or room_of(module) == room:
            continue
        words = set(re.findall(r"\w+", file.read_text()))
        named = [section.__name__ for section in classes if section.__name__ in words]
        assert not named or str(file.relative_to(PACKAGE)) in listed, f"{file} names {named}"
    own = {str(PACKAGE / word) for word in listed}
    assert all(Path(path).is_file() for path in own), listed


def test_one_version_everywhere() -> None:
    """The package's own, CITATION's and the changelog's newest; the wheel takes the package's."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
    assert newest is not None and wheel == "memdiff/__init__.py"
    assert str(citation["version"]) == newest[1] == memdiff.__version__
