"""What every study leaves in benchmarks/results/: NAME.json with its provenance, and NAME.md where it has a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT, of_process, of_tree

RESULTS = ROOT / "benchmarks" / "results"


def write_study(
    name: str,
    command: str,
    machine: Mapping[str, Any],
    summary: Mapping[str, Any],
    content: Mapping[str, Any],
    table: str | None = None,
    *,
    folder: Path = RESULTS,
) -> dict[str, Any]:
    """The summary, with the command, the commit, versions and `machine` (as it was before the study began).

    Paths of this checkout are written without its place. Prints the table and the summary as one line of JSON.
    """
    whole = {"command": command, **summary, **of_tree(), **machine, **of_process()}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"summary": whole, **content}, indent=1).replace(f"{ROOT}/", "")
    (folder / f"{name}.json").write_text(text + "\n")
    if table is not None:
        (folder / f"{name}.md").write_text(table)
        print(table)
    print(json.dumps(whole))
    return whole
