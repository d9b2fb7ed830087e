"""Files of prompts: text, CSV and TSV, JSON, JSONL, Parquet. No torch."""

import csv
import importlib
import importlib.util
import io
import json
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memdiff.errors import ConfigError

MOST_BYTES = 64 << 20  # of a file
MOST_PROMPTS = 1_000_000
MOST_CHARACTERS = 10_000  # of a prompt: encoders read a few hundred
COLUMN = "prompt"
DELIMITERS = (",", ";", "\t")  # spreadsheets of some countries write semicolons
OTHER_FORMATS = (
    ".yaml", ".yml", ".toml", ".xml", ".html", ".xls", ".xlsx", ".ods", ".arrow", ".feather", ".pkl", ".py",
)  # fmt: skip
KNOWN = ".txt (one a line), .csv, .tsv, .json, .jsonl or .parquet"

Numbered = Iterable[tuple[str, Any]]  # what a prompt was, and where: "line 3"


def read_prompt_file(path: Path) -> tuple[str, ...]:
    """The prompts of a file, by its suffix; of a text file one a line, empty lines skipped.

    CSV and TSV have a header, and a column `prompt` or only one; JSON is a list of texts or of objects with a `prompt`,
    or `{"prompts": [...]}`; JSONL has one of those a line; Parquet has a column `prompt`.
    Raises ConfigError in one line where the file is missing, too large, of another format, empty, or no text, and where
    a line holds no prompt.
    """
    suffix = path.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise ConfigError(f"{path}: prompts are read from {KNOWN}, got {path.suffix}")
    _check_size(path)
    match suffix:
        case ".parquet":
            entries = _of_parquet(path)
        case ".csv" | ".tsv":
            entries = _of_table(path, _text_of(path), ("\t",) if suffix == ".tsv" else DELIMITERS)
        case ".json":
            entries = _of_json(path, _text_of(path))
        case ".jsonl" | ".ndjson":
            entries = ((f"line {number}", _json_line(path, number, line)) for number, line in _lines(_text_of(path)))
        case _:
            entries = ((f"line {number}", line) for number, line in _lines(_text_of(path)))
    return _checked(path, entries)


def _check_size(path: Path) -> None:
    try:
        about = path.stat()
    except FileNotFoundError:
        raise ConfigError(f"no such prompt file: {path}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the prompt file {path} can't be read: {error}") from None
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "no regular file"
        raise ConfigError(f"the prompt file {path} can't be read: it is {what}; give a regular file")
    if about.st_size > MOST_BYTES:
        raise ConfigError(
            f"the prompt file {path} has {about.st_size >> 20} MiB, more than the {MOST_BYTES >> 20} that are read; "
            "give a part of it"
        )


def _text_of(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"the prompt file {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(f"{path} is not a text file; prompts are UTF-8, in {KNOWN}")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _checked(path: Path, entries: Numbered) -> tuple[str, ...]:
    prompts = []
    for where, entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            raise ConfigError(f"{path} {where}: the prompt must be a text, got {entry!r:.60}")
        if len(entry) > MOST_CHARACTERS:
            raise ConfigError(f"{path} {where}: the prompt has {len(entry)} characters, the most are {MOST_CHARACTERS}")
        prompts.append(entry.strip())
        if len(prompts) > MOST_PROMPTS:
            raise ConfigError(f"the prompt file {path} holds more than {MOST_PROMPTS} prompts; give a part of it")
    if not prompts:
        raise ConfigError(f"the prompt file {path} holds no prompt")
    return tuple(prompts)


def _of_table(path: Path, text: str, delimiters: Sequence[str]) -> Numbered:
    first = next((line for _, line in _lines(text)), "")
    headers = {delimiter: _cells(first, delimiter) for delimiter in delimiters}
    delimiter = next((mark for mark, header in headers.items() if COLUMN in header), delimiters[0])
    header = headers[delimiter]
    if COLUMN not in header and (len(header) > 1 or " " in header[0]):
        raise ConfigError(
            f"{path}: the first line must name the columns, one of them {COLUMN!r}, got {first.strip()!r:.60}"
        )
    column = header.index(COLUMN) if COLUMN in header else 0
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    filled = (row for row in rows if any(cell.strip() for cell in row))
    try:
        next(filled, None)  # the header
        for row in filled:
            if len(row) != len(header):
                raise ConfigError(
                    f"{path} line {rows.line_num} has {len(row)} cells and the header {len(header)}; put quotes around "
                    f"prompts that hold {delimiter!r}"
                )
            yield f"line {rows.line_num}", row[column]
    except csv.Error as error:
        raise ConfigError(f"{path} line {rows.line_num} is no row of a table: {error}") from None


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip().lower() for cell in next(csv.reader([line], delimiter=delimiter))] or [""]
    except csv.Error:
        return [""]


def _of_json(path: Path, text: str) -> Numbered:
    if not text.strip():
        return
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({str(error)[:80]}); a text a line goes into .txt or .jsonl") from None
    if isinstance(content, Mapping):
        content = content.get("prompts", content.get(COLUMN))
        content = [content] if isinstance(content, str) else content
    if not isinstance(content, list):
        raise ConfigError(f'{path}: a list of prompts is needed, or {{"prompts": [...]}}')
    for number, entry in enumerate(content, start=1):
        yield f"entry {number}", _prompt_of(entry, f"{path} entry {number}")


def _json_line(path: Path, number: int, line: str) -> Any:
    where = f"{path} line {number}"
    try:
        return _prompt_of(json.loads(line), where)
    except (ValueError, RecursionError):
        raise _no_prompt(line.strip(), where) from None


def _prompt_of(entry: Any, where: str) -> Any:
    """A text itself, or what an object has under `prompt`."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Mapping) or COLUMN not in entry:
        raise _no_prompt(entry, where)
    return entry[COLUMN]


def _no_prompt(entry: Any, where: str) -> ConfigError:
    return ConfigError(f'{where}: {{"prompt": "..."}} is needed, got {entry!r:.60}')


def _of_parquet(path: Path) -> Numbered:
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"{path}: Parquet needs pyarrow, which is not installed: pip install pyarrow; or save it as .csv"
        )
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        column = COLUMN if COLUMN in names else names[0]
        if COLUMN not in names and len(names) > 1:
            raise ConfigError(f"{path} has no column {COLUMN!r}; it has {', '.join(names[:10])}")
        if file.metadata.num_rows > MOST_PROMPTS:
            raise ConfigError(f"the prompt file {path} holds more than {MOST_PROMPTS} prompts; give a part of it")
        entries = [entry for batch in file.iter_batches(columns=[column]) for entry in batch.column(0).to_pylist()]
    except ConfigError:
        raise
    except Exception as error:  # a damaged file ends in whatever exception its bytes lead to
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"{path} can't be read as Parquet ({type(error).__name__}: {reason})") from None
    return ((f"row {number}", entry) for number, entry in enumerate(entries, start=1))
