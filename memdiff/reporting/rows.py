"""Reading `metrics.jsonl`: one JSON object a line, one line a round."""

import json
from pathlib import Path
from typing import Any

from memdiff.errors import ConfigError
from memdiff.runtime.small_files import own_bytes


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file, in file order, values as JSON gives them (numbers may be null, NaN or missing).

    A last line without its newline that is no JSON is what a killed writer leaves: it is left out. A prefix of an
    object never parses, so a line that does parse is whole, with or without the newline. Nothing else is dropped.

    Raises ConfigError if the file is missing, or if any other line is not a JSON object.
    """
    try:
        content = own_bytes(path, within=path.parent)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}. Give the folder of a run that has begun.") from error

    lines = content.split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise ConfigError(f"{path} line {number} is not JSON. Remove that line, or restore the file.") from error
        if not isinstance(row, dict):
            raise ConfigError(
                f"{path} line {number} must be a JSON object, got {type(row).__name__}. Remove that line."
            )
        rows.append(row)
    return rows
