"""`memdiff score`: rewards given in words, tables and JSON that hold the right numbers, mistakes in one line."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memdiff import cli
from memdiff.errors import ConfigError
from memdiff.scoring.request import given_parts
from tests.helpers.processes import memdiff

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def light(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n")


def test_rewards_are_given_on_the_command_line() -> None:
    """Keys and values as in a recipe; commas belong to a value unless a key follows; names tell two of a kind apart."""
    parts: Any = given_parts(
        ["digits:digits=[5,6],mode=probability", "jpeg:quality=90", "jpeg:quality=10,name=rough", "python:file=mine.py",
         "image_reward:prompt=a cat, a dog,weight=2"],
        with_prompts=False,
    )  # fmt: skip
    assert list(parts) == ["digits", "compressible", "rough", "score", "image_reward"]
    assert parts["digits"].digits == (5, 6) and parts["rough"].quality == 10
    assert (parts["image_reward"].prompt, parts["image_reward"].weight) == ("a cat, a dog", 2.0)


GIVEN_BADLY = [
    ("jpg", "kind must be one of"),
    ("jpeg:qualty=3", "did you mean quality?"),
    ("jpeg:quality", "--reward takes KIND or KIND:key=value"),
    ("jpeg:quality=3,quality=4", "given twice"),
    ("jpeg:quality=[", "not a YAML value"),
    ("pickscore", "give --prompt, or pickscore:prompt=..."),
    ("python:file=nowhere.py", "no such file: nowhere.py"),
    ("", "kind must be one of"),
]


@pytest.mark.parametrize(("text", "said"), GIVEN_BADLY, ids=[text or "empty" for text, _ in GIVEN_BADLY])
def test_badly_given_rewards_are_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given_parts([text], with_prompts=False)
    assert said in str(caught.value) and "--reward" in str(caught.value)


def paint(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return path


def test_score_on_the_command_line(tmp_path: Path) -> None:
    """Two images, three rewards: JSON and table hold Pillow's own file sizes and the mean of the pixels."""
    files = [paint(tmp_path / f"{name}.png", seed) for seed, name in enumerate("ab")]
    done = memdiff(
        "score", "a.png", "b.png", "--reward", "jpeg:prefer=large", "--reward", "python:file=mine.py,function=light",
        "--reward", "digits", "--rows", "--json", "scores.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and "incompressible" in done.stdout and "a.png" in done.stdout, done.stderr
    document = json.loads((tmp_path / "scores.json").read_text())
    assert [entry["image"] for entry in document["images"]] == ["a.png", "b.png"]
    for entry, file in zip(document["images"], files, strict=True):
        buffer = io.BytesIO()
        Image.open(file).save(buffer, format="JPEG", quality=95)
        assert entry["scores"]["incompressible"] == pytest.approx(buffer.tell() / 1000)
        light = float(np.asarray(Image.open(file)).mean() / 255)
        assert entry["scores"]["light"] == pytest.approx(light, abs=1e-6) and f"{light:.4f}" in done.stdout
        assert entry["scores"]["digits"] in (0, 1)
    assert document["mean"]["light"] == pytest.approx(math.fsum(e["scores"]["light"] for e in document["images"]) / 2)


def test_a_sampled_folder_is_scored_by_its_own_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself: images alone, each with its prompt, a summary of a few lines; --prompt overrules."""
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "settings.json").write_text('{"num_images": 40, "sampler": {}, "prompts": ["a", "bbb"]}')
    for name in ("grid", *(f"image_{number:06d}" for number in range(40))):
        paint(folder / f"{name}.png", 0)
    (tmp_path / "mine.py").write_text("def letters(images, prompts):\n    return [len(text) for text in prompts]\n")
    words = ["score", str(folder), "--reward", "python:file=mine.py,function=letters", "--json", "scores.json"]
    for more, expected in (([], [1, 3] * 20), (["--prompt", "four"], [4] * 40)):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, *more])
        document = json.loads((tmp_path / "scores.json").read_text())
        assert ended.value.code == 0 and [entry["scores"]["letters"] for entry in document["images"]] == expected
        shown = capsys.readouterr().out
        assert f"{sum(expected) / 40:.4f}" in shown and "image_" not in shown and len(shown.splitlines()) < 8


def test_what_is_not_finite_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who tries a reward before a run hears of a NaN, of how many images and of the first; JSON has null there."""
    for name in "abc":
        paint(tmp_path / f"{name}.png", 0)
    (tmp_path / "mine.py").write_text("def s(images, prompts):\n    return [1.0, float('nan'), float('inf')]\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", "a.png", "b.png", "c.png", "--reward", "python:file=mine.py,function=s", "--json", "s.json"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 0 and "s is not finite for 2 of 3 images, first b.png (nan)" in line
    scores = [entry["scores"]["s"] for entry in json.loads((tmp_path / "s.json").read_text())["images"]]
    assert scores == [1.0, None, None]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a.png", "--reward", "jpg"], 2, "kind must be one of"),
        (["none.png", "--reward", "jpeg"], 2, "no image in none.png"),
        (["a.png", "--reward", "pickscore"], 2, "give --prompt"),
        (
            ["a.png", "--reward", "jpeg", "--prompt", "a", "--prompt", "b"],
            2,
            "one prompt for all images or one for each",
        ),
        (["a.png", "--reward", "jpeg", "--json", "no/where.json"], 2, "no such folder"),
        (["a.png", "--reward", "python:file=raises.py"], 3, "raised ZeroDivisionError"),
        (["a.png"], 2, "reward"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    """One line on stderr and the exit code; nothing on stdout, no traceback."""
    paint(tmp_path / "a.png", 0)
    (tmp_path / "raises.py").write_text("def score(images, prompts):\n    return 1 / 0\n")
    done = memdiff("score", *words, cwd=tmp_path)
    assert done.returncode == code and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"memdiff: error[{code}]: ") and said in line
