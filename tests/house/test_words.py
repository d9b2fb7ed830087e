"""Names and docstrings say what a thing is."""

import ast
from collections.abc import Iterator

from tests.house.rooms import ROOT

FILES = sorted(file for room in ("memdiff", "tests", "benchmarks") for file in (ROOT / room).rglob("*.py"))
EMPTY_NAMES = {"found", "told", "given", "taken"}  # participles of whatever was called
FEWEST_WORDS = 4  # of a docstring: with less, the name says as much


def names_bound_in(tree: ast.AST) -> Iterator[str]:
    """Variables, arguments and functions; attributes and keywords are other people's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


TREES = {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in FILES}


def test_names_say_what_a_thing_is() -> None:
    """No variable is called found, told, given or taken, and no argument hides the builtin `round`."""
    names = {file: EMPTY_NAMES.intersection(names_bound_in(tree)) for file, tree in TREES.items()}
    assert {file: empty for file, empty in names.items() if empty} == {}
    arguments = [
        (file, node.arg) for file, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.arg)
    ]
    assert [file for file, name in arguments if name == "round"] == []


def test_docstrings_are_sentences() -> None:
    """A docstring says something that the name does not, or is not there."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        (file, ast.get_docstring(node) or "")
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, documented)
    ]
    assert [(file, text) for file, text in docstrings if 0 < len(text.split()) < FEWEST_WORDS] == []
