"""Files of prompts: text, CSV and TSV, JSON, JSONL, Parquet. No torch."""

import csv
import importlib
import importlib.util
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdiff.errors import ConfigError
from memdiff.runtime.small_files import read_small_file

MOST_BYTES = 64 << 20  # of a file
MOST_PROMPTS = 1_000_000
MOST_CHARACTERS = 10_000  # of a prompt: encoders read a few hundred
COLUMN = "prompt"
COLUMNS = (COLUMN, "prompts")  # DrawBench's has the second
DELIMITERS = (",", ";", "\t")  # spreadsheets of some countries write semicolons
OTHER_FORMATS = (
    ".yaml", ".yml", ".toml", ".xml", ".html", ".xls", ".xlsx", ".ods", ".arrow", ".feather", ".pkl", ".py",
)  # fmt: skip
KNOWN = ".txt (one a line), .csv, .tsv, .json, .jsonl or .parquet"

Found = Iterable[tuple[str, Any, Mapping[str, Any]]]  # where a prompt stands, what it is, and what stands beside it


@dataclass(frozen=True)
class Entry:
    """A prompt, what else its row or object holds (by names in lower case), and where it stands: "line 3"."""

    text: str
    fields: Mapping[str, Any]
    where: str


def read_prompt_file(path: Path) -> tuple[str, ...]:
    """The prompts of a file: see `read_entries`."""
    return tuple(entry.text for entry in read_entries(path))


def read_entries(path: Path) -> tuple[Entry, ...]:
    """The prompts of a file, by its suffix; of a text file one a line, empty lines skipped.

    CSV and TSV have a header, and a column `prompt` (or `prompts`) or only one; JSON is a list of texts or of objects
    with a `prompt`, or `{"prompts": [...]}`; JSONL has one of those a line; Parquet has a column `prompt`.
    Raises ConfigError in one line where the file is missing, too large, of another format, empty, or no text, and where
    a line holds no prompt.
    """
    suffix = path.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise ConfigError(f"{path}: prompts are read from {KNOWN}, got {path.suffix}")
    content = prompt_bytes(path)
    if suffix == ".parquet":
        return _checked(path, _of_parquet(path, content))
    text = _text_of(path, content)
    match suffix:
        case ".csv":
            entries = _of_csv(path, text)
        case ".tsv":
            entries = _of_tsv(path, text)
        case ".json":
            entries = _of_json(path, text)
        case ".jsonl" | ".ndjson":
            entries = (_json_line(path, number, line) for number, line in _lines(text))
        case _:
            entries = ((f"line {number}", line, {}) for number, line in _lines(text))
    return _checked(path, entries)


def prompt_bytes(path: Path) -> bytes:
    """The content of a prompt file. Raises ConfigError where it is no regular file of a sane size."""
    try:
        return read_small_file(path, what="the prompt file", most_bytes=MOST_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"no such prompt file: {path}") from None


def _text_of(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(f"{path} is not a text file; prompts are UTF-8, in {KNOWN}")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _checked(path: Path, rows: Found) -> tuple[Entry, ...]:
    entries = []
    for where, prompt, fields in rows:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(f"{path} {where}: the prompt must be a text, got {prompt!r:.60}")
        check_encodable(prompt, f"{path} {where}")
        if len(prompt) > MOST_CHARACTERS:
            raise ConfigError(
                f"{path} {where}: the prompt has {len(prompt)} characters, the most are {MOST_CHARACTERS}"
            )
        entries.append(Entry(prompt.strip(), fields, where))
        if len(entries) > MOST_PROMPTS:
            raise ConfigError(f"the prompt file {path} holds more than {MOST_PROMPTS} prompts; give a part of it")
    if not entries:
        raise ConfigError(f"the prompt file {path} holds no prompt")
    return tuple(entries)


def check_encodable(prompt: str, where: str) -> None:
    """Raises ConfigError for half of a character: JSON's \\ud800, bytes of a command line that are no UTF-8."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        half = prompt[error.start].encode("unicode_escape").decode()
        raise ConfigError(f"{where}: the prompt holds {half}, which is half of a character; write it anew") from None


def _of_csv(path: Path, text: str) -> Found:
    first = next((line for _, line in _lines(text)), "")
    headers = {delimiter: _cells(first, delimiter) for delimiter in DELIMITERS}
    delimiter = next((mark for mark, header in headers.items() if _named(header) is not None), DELIMITERS[0])
    header = headers[delimiter]
    column = _column(path, header, first)
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
            yield f"line {rows.line_num}", row[column], dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path} line {rows.line_num} is no row of a table: {error}") from None


def _of_tsv(path: Path, text: str) -> Found:
    """One record is one line: a quotation mark that opens a text (PartiPrompts has some) swallows no lines."""
    lines = _lines(text)
    first = next((line for _, line in lines), "")
    header = _cells(first, "\t")
    column = _column(path, header, first) if first else 0
    for number, line in lines:
        row = _row(line.removesuffix("\r"))
        if not column < len(row) <= len(header):
            raise ConfigError(f"{path} line {number} has {len(row)} cells and the header {len(header)}")
        yield f"line {number}", row[column], dict(zip(header, row, strict=False))


def _row(line: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter="\t", strict=True), [])
    except csv.Error:
        return line.split("\t")


def _named(header: Sequence[str]) -> int | None:
    """The column that a header names for prompts."""
    return next((header.index(name) for name in COLUMNS if name in header), None)


def _column(path: Path, header: Sequence[str], first: str) -> int:
    column = _named(header)
    if column is None and (len(header) > 1 or " " in header[0]):
        raise ConfigError(
            f"{path}: the first line must name the columns, one of them {COLUMN!r}, got {first.strip()!r:.60}"
        )
    return column or 0


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip().lower() for cell in next(csv.reader([line], delimiter=delimiter))] or [""]
    except csv.Error:
        return [""]


def _of_json(path: Path, text: str) -> Found:
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
        yield f"entry {number}", _prompt_of(entry, f"{path} entry {number}"), _fields(entry)


def _json_line(path: Path, number: int, line: str) -> tuple[str, Any, Mapping[str, Any]]:
    where = f"line {number}"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise _no_prompt(line.strip(), f"{path} {where}") from None
    return where, _prompt_of(entry, f"{path} {where}"), _fields(entry)


def _fields(entry: Any) -> Mapping[str, Any]:
    return entry if isinstance(entry, Mapping) else {}


def _prompt_of(entry: Any, where: str) -> Any:
    """A text itself, or what an object has under `prompt`."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Mapping) or COLUMN not in entry:
        raise _no_prompt(entry, where)
    return entry[COLUMN]


def _no_prompt(entry: Any, where: str) -> ConfigError:
    return ConfigError(f'{where}: {{"prompt": "..."}} is needed, got {entry!r:.60}')


def _of_parquet(path: Path, content: bytes) -> Found:
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"{path}: Parquet needs pyarrow, which is not installed: pip install pyarrow; or save it as .csv"
        )
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
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
    return ((f"row {number}", entry, {}) for number, entry in enumerate(entries, start=1))
