"""Prompt files in the formats that people have them in: the same texts, or one line that says what is wrong."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from memdiff.errors import ConfigError
from memdiff.recipe import prompt_files
from memdiff.recipe.prompt_files import read_prompt_file

TEXTS = ("a cat, sitting", 'a "red" dog', "ein Kätzchen; müde")
QUOTED = ['"a cat, sitting"', '"a ""red"" dog"', '"ein Kätzchen; müde"']
FILES = {
    "lines.txt": "\n".join(TEXTS),
    "no_suffix": "\n".join(TEXTS),
    "table.csv": "prompt,score\n" + "".join(f"{text},1\n" for text in QUOTED),
    "second.CSV": "id,Prompt \r\n" + "".join(f"{number},{text}\r\n" for number, text in enumerate(QUOTED)),
    "only.csv": "caption\n\n" + "\n".join(QUOTED) + "\n",
    "semicolons.csv": "id;prompt\n" + "".join(f"1;{text}\n" for text in QUOTED),
    "table.tsv": "prompt\tscore\n" + "".join(f"{text}\t1\n" for text in QUOTED),
    "drawbench.csv": "Prompts,Category\n" + "".join(f"{text},Colors\n" for text in QUOTED),
    "parti.tsv": "Prompt\tCategory\n" + "".join(f"{text}\tArts\n" for text in TEXTS),
    "list.json": json.dumps(TEXTS),
    "objects.json": json.dumps([{"prompt": text, "id": 1} for text in TEXTS]),
    "column.json": json.dumps({"prompt": TEXTS}),
    "named.json": json.dumps({"prompts": [{"prompt": text} for text in TEXTS]}, indent=2),
    "objects.jsonl": "\n".join(json.dumps({"prompt": text}) for text in TEXTS),
    "texts.ndjson": "\n".join(json.dumps(text) for text in TEXTS),
}


@pytest.mark.parametrize("name", FILES)
def test_each_format_holds_the_same_texts(name: str, tmp_path: Path):
    for mark in ("", "\ufeff"):  # with a byte-order mark too
        (tmp_path / name).write_text(mark + FILES[name], encoding="utf-8", newline="")
        assert read_prompt_file(tmp_path / name) == TEXTS


BAD = {
    "a.csv": [
        ("", "holds no prompt"),
        ("prompt\n", "holds no prompt"),
        ("a cat\na dog\n", "the first line must name the columns"),
        ("text,score\na cat,1\n", "one of them 'prompt', got 'text,score'"),
        ("prompt,score\na cat, sitting,1\n", "line 2 has 3 cells and the header 2; put quotes"),
        ("prompt,score\na cat\n", "line 2 has 1 cells"),
        ("prompt,score\n,1\n", "line 2: the prompt must be a text"),
        ('prompt\n"a cat\n', "line 2 is no row of a table"),
        ("prompt\n" + "a" * 200_000, "is no row of a table"),
        ("a\0b", "is not a text file"),
    ],
    "a.json": [
        ("", "holds no prompt"),
        ("[]", "holds no prompt"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("3", "a list of prompts is needed"),
        ('{"text": ["a"]}', "a list of prompts is needed"),
        ("[3]", "entry 1: .*is needed, got 3"),
        ('["a", {"text": "b"}]', "entry 2: .*is needed"),
        ('[{"prompt": null}]', "entry 1: the prompt must be a text, got None"),
        (r'["a cat \ud800"]', r"entry 1: the prompt holds \\ud800, which is half of a character"),
    ],
    "a.txt": [("a" * 10_001, "the prompt has 10001 characters")],
    "a.yaml": [("prompts: [a]", "prompts are read from .txt .*got .yaml")],
    "a.parquet": [("PAR1", "Parquet")],
}


@pytest.mark.parametrize(("name", "content", "said"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_what_is_wrong_is_said_in_a_line(name: str, content: str, said: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_prompt_file(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Devices, pipes and files of gigabytes (a sparse one here) are not read at all; nor are millions of prompts."""
    os.mkfifo(tmp_path / "pipe.txt")
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(1 << 40)
    for path, said in (("/dev/zero", "it is a device"), ("pipe.txt", "it is a pipe"), ("large.csv", "is too large")):
        with pytest.raises(ConfigError, match=said):
            read_prompt_file(tmp_path / path)
    monkeypatch.setattr(prompt_files, "MOST_PROMPTS", 2)
    (tmp_path / "many.txt").write_text("a\nb\nc\n")
    with pytest.raises(ConfigError, match="more than 2 prompts"):
        read_prompt_file(tmp_path / "many.txt")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_with_a_column(tmp_path: Path):
    """As `datasets` writes it."""
    arrow: Any = pytest.importorskip("pyarrow")
    write = importlib.import_module("pyarrow.parquet").write_table
    write(arrow.table({"id": [1, 2, 3], "prompt": TEXTS}), tmp_path / "a.parquet")
    assert read_prompt_file(tmp_path / "a.parquet") == TEXTS
    write(arrow.table({"id": [1], "text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="no column 'prompt'; it has id, text"):
        read_prompt_file(tmp_path / "a.parquet")
