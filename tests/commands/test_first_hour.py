"""What a newcomer meets first: shipped recipes by name, a recipe from a few words, a dry run, the schema."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from memdiff import __version__
from memdiff.cli import main
from memdiff.recipe.init import SCHEMA_LINE
from memdiff.recipe.reading import read_recipe
from memdiff.recipe.schema import recipe_schema
from memdiff.recipe.shipped import EDITORS, completions, headline, shipped_recipes
from memdiff.training.run_folder import RunFolder
from tests.helpers.processes import ROOT, run

INIT = ["init", "--model", "digits", "--reward", "digits:digits=[7],mode=log_probability"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_recipes_are_listed_and_found_by_name(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; a file of that name in it comes first; a near miss is told with what it may have meant."""
    monkeypatch.chdir(tmp_path)
    code, shown, _ = said(capsys, "recipes")
    names = [line.split()[0] for line in shown.splitlines()]
    assert code == 0 and names == list(shipped_recipes()) and len(names) >= 19
    for file in shipped_recipes().values():
        assert 7 < len(headline(file)) < 100 and EDITORS not in headline(file)
        assert SCHEMA_LINE in file.read_text().splitlines(), file
    assert said(capsys, "recipes", "--show", "digits_ddpo")[1].startswith("# DDPO")
    assert (
        read_recipe(Path("digits_ddpo"))
        == read_recipe(Path("digits_ddpo.yaml"))
        == read_recipe(shipped_recipes()["digits_ddpo"])
    )
    (tmp_path / "digits_ddpo.yaml").write_text(
        "model: {kind: embedded, name: digits}\nmethod: {kind: reinforce}\nreward: [{kind: jpeg}]\n"
    )
    assert read_recipe(Path("digits_ddpo.yaml")).reward[0].kind == "jpeg"
    code, _, error = said(capsys, "plan", "sd15_drft_t4")
    assert code == 2 and "did you mean sd15_draft_t4" in error and error.count("\n") == 1


def test_a_shell_completes_recipes_by_file_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits_mine.yaml").touch()
    (tmp_path / "digits.png").touch()
    monkeypatch.chdir(tmp_path)
    names = [name for name in shipped_recipes() if name.startswith("digits_")]
    assert completions("digits_") == ["digits_mine.yaml", *names] and completions("nothing") == []
    words = {"_MEMDIFF_COMPLETE": "complete_bash", "COMP_WORDS": "memdiff train digits_d", "COMP_CWORD": "2"}
    done = run([sys.executable, "-m", "memdiff"], cwd=tmp_path, env=words | {"PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == ["digits_ddpo", "digits_draft"], done.stderr


def test_version_and_short_help(capsys: Any) -> None:
    assert said(capsys, "--version") == (0, f"memdiff {__version__}\n", "")
    assert "--set" in said(capsys, "train", "-h")[1]


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    code, shown, _ = said(capsys, "train", "digits_reinforce", "--gpus", "2", "--out", str(out), "--dry-run")
    assert code == 0 and not out.exists()
    assert "25 of 64 images" in shown and f"{out}, a new run" in shown
    code, _, error = said(capsys, "train", "digits_reinforce", "--gpus", "65", "--out", str(out), "--dry-run")
    assert code == 2 and error.startswith("memdiff: error[2]: ")


def test_a_misspelt_run_is_not_looked_for_on_the_hub(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """`runs/NAME` beside runs is a run's name: the line has those that are there. Elsewhere it may be a hub id."""
    monkeypatch.chdir(tmp_path)
    with RunFolder(tmp_path / "runs" / "mine").prepare(read_recipe(Path("digits_reinforce")), "auto", None):
        pass
    for words in (["sample", "runs/mien"], ["eval", "digits", "runs/mien", "--reward", "digits"]):
        code, _, error = said(capsys, *words)
        assert code == 2 and "no such run: runs/mien; runs/ holds mine" in error
    _, shown, _ = said(capsys, "train", "digits_reinforce", "--gpus", "2", "--out", "runs/mine", "--dry-run")
    assert "where a run began that has no round done" in shown


def test_a_recipe_from_a_few_words_trains_as_it_stands(tmp_path: Path, capsys: Any) -> None:
    """A reward with a gradient is differentiated, another one is not; both recipes are right and carry comments."""
    file = tmp_path / "sevens.yaml"
    code, shown, _ = said(capsys, *INIT, "--out", str(file), "--gpu", "t4", "--gpus", "4")
    assert code == 0 and f"memdiff plan {file} --gpu t4 --gpus 4" in shown
    recipe = read_recipe(file)
    assert (recipe.method.kind, recipe.sampler.eta) == ("draft", 0.0) and file.read_text().count("\n# ") >= 5
    said(capsys, "init", "--model", "digits", "--reward", "jpeg", "--out", str(tmp_path / "jpeg.yaml"))
    recipe = read_recipe(tmp_path / "jpeg.yaml")
    assert (recipe.method.kind, recipe.sampler.eta) == ("reinforce", 1.0)
    assert recipe.adapter is None
    (tmp_path / "mine.py").write_text("def score(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n")
    words = ["--reward", f"python:file={tmp_path}/mine.py", "--out", str(tmp_path / "mine.yaml")]
    assert "memdiff plan" not in said(capsys, "init", "--model", "digits", *words)[1]
    assert "{kind: python, file: mine.py}" in (tmp_path / "mine.yaml").read_text()
    assert getattr(read_recipe(tmp_path / "mine.yaml").reward[0], "file", "") == str(tmp_path / "mine.py")
    hub = ["init", "--model", "stable-diffusion-v1-5/stable-diffusion-v1-5", "--prompt", 'a "cat": two', "--reward"]
    said(capsys, *hub, "aesthetic", "--out", str(tmp_path / "sd.yaml"))
    recipe = read_recipe(tmp_path / "sd.yaml")
    assert recipe.model.kind == "stable_diffusion" and recipe.sampler.guidance == 7.5
    assert recipe.prompts is not None and recipe.prompts.texts == ('a "cat": two',)


MISTAKES = {
    "no model": (["init", "--reward", "jpeg"], "init needs --model and --reward"),
    "no prompt": (["init", "--model", "digits_text", "--reward", "jpeg"], "give --prompt"),
    "a model that says nothing": (["init", "--model", "a/b", "--reward", "jpeg"], "--kind ddpm, stable_diffusion"),
    "a method that is none": ([*INIT, "--method", "ddpo"], "method.kind must be one of"),
    "a file that is there": ([*INIT, "--out", "there.yaml"], "exists; give another --out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_init_are_one_line(name: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("kept")
    words, message = MISTAKES[name]
    code, _, error = said(capsys, *words)
    assert code == 2 and message in error and error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["there.yaml"]


def test_every_key_of_the_schema_is_described_and_bounded_in_its_own_words() -> None:
    """An editor shows both: no key without a description, no bound under pydantic's name."""
    schema = recipe_schema()
    keys = [
        (section, name, key)
        for section, content in {"": schema, **schema["$defs"]}.items()
        for name, key in content.get("properties", {}).items()
    ]
    assert len(keys) > 200
    assert [(section, name) for section, name, key in keys if not key.get("description", "").strip()] == []
    text = json.dumps(schema)
    assert not any(f'"{bound}": ' in text for bound in ("ge", "gt", "le", "lt"))
    clip = schema["$defs"]["DraftConfig"]["properties"]["costate_clip"]
    assert {"exclusiveMinimum": 0, "maximum": 1e9, "type": "number"} in clip["anyOf"]
