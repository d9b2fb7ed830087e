"""The lines that users' mistakes end with, read from the source: which file says what, with … where a value stands.

Read are the calls that make an error of memdiff.errors, and, where pydantic turns it into one, a ValueError. What such
a call gets from a variable is followed to the constants and assignments of the same file; words that come from another
library, or through an argument, have no fixed part and are left out.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from memdiff import errors

PACKAGE = Path(errors.__file__).parent
VARIES = "…"
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, BaseException)}
FEWEST_LETTERS = 6  # of a message's fixed words: with less, all of it comes from elsewhere
MARKER = re.compile(r"^<!-- messages: (.+) -->$", re.MULTILINE)


@cache
def messages() -> dict[str, list[str]]:
    """By file, as a path inside memdiff/: its messages in their order, each once."""
    by_file = {str(file.relative_to(PACKAGE)): list(dict.fromkeys(messages_of(file))) for file in _sources()}
    return {file: said for file, said in by_file.items() if said}


def messages_of(file: Path) -> Iterator[str]:
    """The messages of one file, in their order."""
    tree = ast.parse(file.read_text())
    known = ERRORS | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _is_error(node)}
    if any(isinstance(node, ast.ImportFrom) and node.module == "pydantic" for node in ast.walk(tree)):
        known = known | {"ValueError"}
    constants = _assigned(tree.body)
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef | ast.Module):
            continue
        names = constants if isinstance(scope, ast.Module) else constants | _assigned(ast.walk(scope))
        for node in _own_nodes(scope):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known and node.args:
                for said in _words(node.args[0], names):
                    if sum(map(str.isalpha, said)) >= FEWEST_LETTERS:
                        yield " ".join(said.split())


@cache
def all_words() -> str:
    """Every text with a value in it and every plain text of the source: what an entry of the page may quote."""
    said: list[str] = []
    for file in _sources():
        tree = ast.parse(file.read_text())
        said += [
            word
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr | ast.Constant)
            for word in _words(node, {})
        ]
    return "\n".join(" ".join(word.split()) for word in said)


def with_messages(page: str) -> str:
    """The page with the list of its files' messages in the place of each marker."""
    said = messages()

    def listed(marker: re.Match[str]) -> str:
        return "\n".join(f"- {quoted(message)}" for file in marker[1].split() for message in said[file])

    return MARKER.sub(listed, page)


def quoted(message: str) -> str:
    """As code in Markdown, whatever quotes are in it."""
    fence = "``" if "`" in message else "`"
    return f"{fence} {message} {fence}" if "`" in message else f"`{message}`"


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _is_error(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id in ERRORS for base in node.bases)


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function or module, without the functions in it."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef):
            continue
        yield node
        waiting = [*ast.iter_child_nodes(node), *waiting]


def _assigned(nodes: "Iterator[ast.AST] | list[ast.stmt]") -> dict[str, list[ast.expr]]:
    """What names are set to by plain assignments."""
    values: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
    return values


def _words(node: ast.expr | ast.AST, names: dict[str, list[ast.expr]], depth: int = 0) -> list[str]:
    """The texts that an expression can be, … for what is not fixed."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [VARIES]
    if isinstance(node, ast.FormattedValue):
        if isinstance(node.value, ast.Name) and depth < 2:
            texts = _words(node.value, names, depth + 1)
            return texts if len(texts) == 1 and VARIES not in texts[0] else [VARIES]
        return [VARIES]
    if isinstance(node, ast.JoinedStr):
        return ["".join((_words(part, names, depth) or [VARIES])[0] for part in node.values)]
    if isinstance(node, ast.IfExp):
        return [*_words(node.body, names, depth), *_words(node.orelse, names, depth)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in _words(node.left, names, depth) for right in _words(node.right, names, depth)]
    if isinstance(node, ast.Name) and depth < 2:
        return [text for value in names.get(node.id, ()) for text in _words(value, names, depth + 1)] or [VARIES]
    return [VARIES]
