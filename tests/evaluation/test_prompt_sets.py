"""Prompt sets are read as their authors publish them; each mistake in one is one line that says where."""

import json
from pathlib import Path

import pytest

from memdiff.errors import ConfigError
from memdiff.evaluation.prompt_sets import Prompt, read_prompt_set

DRAWBENCH = 'Prompts,Category\r\nA red colored car.,Colors\r\n"A stop sign, on a pole.",Conflicting\r\n,\r\n'
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings\n"
    '"Explain this!" two robots ask\tWorld Knowledge\tComplex\tA "quote" opens a line\n'
    '"a sign that says ""hi"""\tArts\tWriting & Symbols\t\n'
)
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "tie", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a tie",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "car", "count": 1, "color": "red"}],
        "prompt": "a photo of a red car",
    },
]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_drawbench(tmp_path: Path) -> None:
    """CSV with quoted commas, Windows' line ends and an empty row; the file's sha256 is kept."""
    read = read_prompt_set(write(tmp_path / "drawbench.csv", "\ufeff" + DRAWBENCH))
    assert read.format == "DrawBench" and len(read.sha256) == 64
    assert read.prompts == (Prompt("A red colored car.", "Colors"), Prompt("A stop sign, on a pole.", "Conflicting"))


def test_parti_prompts(tmp_path: Path) -> None:
    """TSV: a quotation mark that opens a text swallows no lines, and what is quoted as a whole is unquoted."""
    read = read_prompt_set(write(tmp_path / "PartiPrompts.tsv", PARTI))
    assert read.format == "PartiPrompts"
    assert [prompt.text for prompt in read.prompts] == [
        "bond",
        '"Explain this!" two robots ask',
        'a sign that says "hi"',
    ]
    assert [prompt.category for prompt in read.prompts] == ["Abstract", "World Knowledge", "Arts"]


def test_hpdv2(tmp_path: Path) -> None:
    """The benchmark's lists of texts, one style a file; and test.json's objects."""
    style = read_prompt_set(write(tmp_path / "concept-art.json", json.dumps(["a cat", " a dog\n"])))
    assert style.prompts == (Prompt("a cat", "concept-art"), Prompt("a dog", "concept-art"))
    entries = [{"prompt": "a cat", "image_path": ["1.jpg", "2.jpg"], "rank": [1, 0], "raw_annotation": []}]
    annotated = read_prompt_set(write(tmp_path / "test.json", json.dumps(entries)))
    assert annotated.format == "HPDv2" and annotated.prompts == (Prompt("a cat"),)


def test_geneval(tmp_path: Path) -> None:
    """Tags are categories; counts, exclusions, colours and positions are kept."""
    read = read_prompt_set(write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, GENEVAL)) + "\n"))
    assert read.format == "GenEval" and [prompt.category for prompt in read.prompts] == [e["tag"] for e in GENEVAL]
    scenes = [prompt.scene for prompt in read.prompts]
    assert scenes[1] and (scenes[1].include[0].count, scenes[1].exclude[0].count) == (2, 3)
    assert scenes[2] and scenes[2].include[1].position == ("right of", 0)
    assert scenes[3] and (scenes[3].include[0].class_, scenes[3].include[0].color) == ("car", "red")


def test_our_own_files(tmp_path: Path) -> None:
    assert read_prompt_set(write(tmp_path / "a.txt", "one\n\ntwo\n")).prompts == (Prompt("one"), Prompt("two"))
    assert read_prompt_set(write(tmp_path / "a.jsonl", '{"prompt": "one"}\n')).prompts == (Prompt("one"),)


def scene(**changes: object) -> str:
    return json.dumps(GENEVAL[2] | changes)


MISTAKES = [
    ("a.csv", "Text,Category\na,b\n", "the first line must name the columns, one of them 'prompt'"),
    ("a.csv", "Prompts,Category\n,Colors\n", "line 2: the prompt must be a text"),
    ("a.csv", "Prompts,Category\n", "holds no prompt"),
    ("a.tsv", "", "holds no prompt"),
    ("a.tsv", "Text\tCategory\na\tb\n", "the first line must name the columns, one of them 'prompt'"),
    ("a.tsv", "Prompt\tCategory\na\tb\tc\n", "line 2 has 3 cells and the header 2"),
    ("a.json", "{", "is not JSON"),
    ("a.json", '{"anime": []}', "a list of prompts is needed"),
    ("a.json", '["a", 3]', "entry 2: "),
    ("a.json", "[]", "holds no prompt"),
    ("a.jsonl", scene() + "\n{}", "line 2: "),
    ("a.jsonl", scene() + '\n{"prompt": "a dog"}', "line 2: prompt, tag and include are needed"),
    ("a.jsonl", scene(include=[{"class": "dog"}]), "include.0.count"),
    ("a.jsonl", scene(include=[{"class": "dog", "count": 1, "position": ["above", 0]}]), "a position is one of"),
    ("a.jsonl", scene(prompt=" "), "the prompt must be a text"),
    ("a.txt", "\n", "holds no prompt"),
]


@pytest.mark.parametrize(("name", "text", "said"), MISTAKES)
def test_mistakes_are_one_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_prompt_set(write(tmp_path / name, text))
    assert said in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    for name, said in (("none.csv", "no such prompt file"), ("a.csv", "not a text file")):
        with pytest.raises(ConfigError, match=said):
            read_prompt_set(tmp_path / name)
