"""The rooms of the package, their order, and who imports whom: `python -m tests.house.rooms` prints the arrows.

A room is what lies directly in memdiff/: a folder, or a file of its own.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "memdiff"

# A file imports only from rooms on the lines above its own, and from its own room. Rooms on one line may not import
# each other.
ORDER = (
    ("errors",),
    ("processes",),
    ("runtime",),
    ("chain", "digits"),
    ("models",),
    ("rewards",),
    ("memory",),
    ("methods",),
    ("engine",),
    ("recipe",),
    ("planner",),  # runs methods on fake tensors, so that it stands above them
    ("reporting", "doctor"),
    ("loggers",),
    ("training",),
    ("sampling", "scoring", "publishing", "bench"),
    ("evaluation",),
    ("library",),
    ("cli",),
    ("__main__",),
)


def module_name(file: Path) -> str:
    """memdiff/chain/ddim.py -> chain.ddim; memdiff/chain/__init__.py -> chain; the package's own: empty."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room that a dotted module name belongs to: chain.ddim -> chain."""
    return module.partition(".")[0]


def line_of(room: str) -> int:
    """The number of the line of ORDER on which the room stands."""
    return next(number for number, line in enumerate(ORDER) if room in line)


def is_main_block(node: ast.AST) -> bool:
    """`if __name__ == "__main__":` is a program of its own, which is never imported and may use anything."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imports_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(full name, line) of everything that is imported anywhere in a file, function bodies included."""
    waiting: list[ast.AST] = [node for node in tree.body if not is_main_block(node)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def own_module(imported: str) -> str | None:
    """The module of memdiff that an import reaches (`memdiff.chain.ddim.log_prob` -> `chain.ddim`), or None."""
    top, _, rest = imported.partition(".")
    if top != "memdiff":
        return None
    while rest and rest not in FILES:
        rest = rest.rpartition(".")[0]
    return rest


def modules_imported_by(module: str) -> set[str]:
    """Modules of memdiff, the package itself (the version) left out."""
    imports = imports_of(ast.parse(FILES[module].read_text()))
    return {target for name, _ in imports if (target := own_module(name))}


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    rooms = {room_of(module): set[str]() for module in FILES if module}
    for module in FILES:
        if module:
            mine = room_of(module)
            rooms[mine] |= {room_of(target) for target in modules_imported_by(module)} - {mine}
    return rooms


if __name__ == "__main__":
    rooms = arrows()
    for room in sorted(rooms, key=line_of):
        print(f"{room:<12} {' '.join(sorted(rooms[room], key=line_of))}")
    print(f"{len(rooms)} rooms, {sum(map(len, rooms.values()))} arrows")
