"""Runs a notebook's code cells in one plain Python, as a kernel would: `python -m tests.helpers.notebook FILE RESULT`.

Of what IPython adds, the cells use lines that begin with `!`, which run in a shell with `{expressions}` filled in, and
three names of IPython.display. RESULT gets the exit code of every shell line, and what was displayed.
"""

import json
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHELL_LINE = re.compile(r"^(\s*)!(.+)$", re.MULTILINE)


def code_cells(notebook: Path) -> list[str]:
    """The text of each, in their order."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def as_python(cell: str) -> str:
    """With shell lines as calls."""
    return SHELL_LINE.sub(lambda match: f"{match[1]}_shell({match[2]!r}, {{**globals(), **locals()}})", cell)


def filled(line: str, names: Mapping[str, Any]) -> str:
    """A shell line with its expressions evaluated."""
    return re.sub(r"\{([^{}]+)\}", lambda match: str(eval(match[1], dict(names))), line)


def shell_lines(notebook: Path) -> list[str]:
    """All that stand in the cells, as they are written."""
    return [match[2] for cell in code_cells(notebook) for match in SHELL_LINE.finditer(cell)]


def main(notebook: Path, result: Path) -> None:
    """The first cell that raises ends it, as "run all" does."""
    codes: list[tuple[str, int]] = []
    shown: list[str] = []

    def shell(line: str, names: Mapping[str, Any]) -> None:
        words = filled(line, names)
        sys.stdout.flush()
        codes.append((words, subprocess.run(words, shell=True, check=False).returncode))

    display: Any = types.ModuleType("IPython.display")
    display.HTML = display.Image = lambda data: data
    display.display = shown.append
    sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": display}
    names: dict[str, Any] = {"__name__": "__main__", "_shell": shell}
    try:
        for number, cell in enumerate(code_cells(notebook)):
            exec(compile(as_python(cell), f"cell {number}", "exec"), names)
    finally:
        result.write_text(json.dumps({"codes": codes, "shown": shown}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
