"""What a recipe's paths hold counts as the recipe does: a run is not resumed with another reward."""

import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from memdiff.errors import ConfigError
from memdiff.recipe.contents import PATH_KEYS, WHOLE_BYTES, changed_contents, contents_of, fingerprints
from memdiff.recipe.reading import check_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.section import Section
from memdiff.training.run_folder import RunFolder

LARGE = 3 * WHOLE_BYTES // 4  # fp32 elements of three tensors: a file that is not read whole


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """One that points to files and folders of every kind."""
    for name in ("mine.py", "held_out.py", "texts.txt", "seen_never.txt"):
        (tmp_path / name).write_text("one\n")
    for name in ("pipeline", "classifier"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        save_file({f"t{n}": torch.zeros(LARGE // 3) for n in range(3)}, tmp_path / name / "unet/weights.safetensors")
    (tmp_path / "head.pth").write_bytes(b"head")
    return check_recipe(
        {
            "model": {"kind": "stable_diffusion", "path": "pipeline"},
            "method": {"kind": "reinforce"},
            "prompts": {"file": "texts.txt", "held_out": {"file": "seen_never.txt"}},
            "reward": [
                {"kind": "python", "file": "mine.py"},
                {"kind": "classifier", "path": "classifier", "label": "male"},
                {"kind": "aesthetic", "head": "head.pth"},
            ],
            "evaluate": {"rewards": [{"kind": "python", "file": "held_out.py", "name": "watched"}]},
        },
        source="test",
        folder=tmp_path,
    )


def trained(recipe: Recipe, out: Path, ds_config: Path | None = None) -> RunFolder:
    """A run folder with a checkpoint."""
    folder = RunFolder(out)
    folder.prepare(recipe, "auto", ds_config).release()
    (folder.checkpoints / "round_000001").mkdir(parents=True)
    (folder.checkpoints / "round_000001" / "MANIFEST.json").write_text("{}")
    folder.prepare(recipe, "auto", ds_config).release()
    return folder


def change_a_tensor(file: Path) -> None:
    """The middle one, whole, as training would; the size stays."""
    save_file({f"t{n}": torch.full((LARGE // 3,), float(n == 1)) for n in range(3)}, file)


CHANGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "reward": ("mine.py", lambda file: file.write_text("two\n"), "reward.0.file (mine.py)"),
    "held-out reward": ("held_out.py", lambda file: file.write_text("two\n"), "evaluate.rewards.0.file (held_out.py)"),
    "prompts": ("texts.txt", lambda file: file.write_text("two\n"), "prompts.file (texts.txt)"),
    "held-out prompts": ("seen_never.txt", lambda file: file.write_text("2"), "prompts.held_out.file (seen_never.txt)"),
    "weights": ("pipeline/unet/weights.safetensors", change_a_tensor, "model.path (unet/weights.safetensors)"),
    "constants": ("classifier/config.json", lambda file: file.write_text("[]"), "reward.1.path (config.json)"),
    "a file more": ("classifier/model.safetensors", lambda file: file.write_bytes(b"x"), "reward.1.path (model.safe"),
    "a file less": ("pipeline/unet/weights.safetensors", Path.unlink, "model.path (unet/weights.safetensors)"),
    "a reward's file": ("head.pth", lambda file: file.write_bytes(b"held"), "reward.2.head (head.pth)"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_another_content_is_refused_by_name(what: str, recipe: Recipe, tmp_path: Path) -> None:
    """Exit code 2, as for a key that was changed; what was there again is accepted."""
    file, change, named = CHANGES[what]
    folder = trained(recipe, tmp_path / "run")
    before = (tmp_path / file).read_bytes() if (tmp_path / file).exists() else None
    change(tmp_path / file)
    with pytest.raises(ConfigError, match="holds a run of another recipe") as raised:
        folder.prepare(recipe, "auto").release()
    assert f"the content of {named}" in str(raised.value) and "--resume never" in str(raised.value)
    assert raised.value.exit_code == 2
    if before is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(before)
    folder.prepare(recipe, "auto").release()


def test_what_is_not_content(recipe: Recipe, tmp_path: Path) -> None:
    """Times, a page about a model, hidden files, what lies deeper than models do."""
    folder = trained(recipe, tmp_path / "run")
    os.utime(tmp_path / "mine.py", (1, 1))
    (tmp_path / "pipeline/README.md").write_text("a page")
    (tmp_path / "pipeline/.cache").mkdir()
    (tmp_path / "pipeline/.cache/a.json").write_text("{}")
    (tmp_path / "pipeline/unet/runs").mkdir()
    (tmp_path / "pipeline/unet/runs/state.json").write_text("{}")
    folder.prepare(recipe, "auto").release()


def test_a_folder_of_an_older_version_is_accepted_once(recipe: Recipe, tmp_path: Path) -> None:
    """Without a word on contents, or with one that can't be read: what is there is taken down and holds from then."""
    folder = trained(recipe, tmp_path / "run")
    for text in (None, "[1]", "{"):
        (folder.path / "contents.json").unlink()
        if text is not None:
            (folder.path / "contents.json").write_text(text)
        (tmp_path / "mine.py").write_text(f"# {text}\n")
        folder.prepare(recipe, "auto").release()
        assert json.loads((folder.path / "contents.json").read_text()) == contents_of(recipe)
    (tmp_path / "mine.py").write_text("another\n")
    with pytest.raises(ConfigError, match=r"reward\.0\.file"):
        folder.prepare(recipe, "auto").release()


def test_a_reward_may_be_mended_before_anything_was_trained(recipe: Recipe, tmp_path: Path) -> None:
    """It failed at its first call: there is no checkpoint to go on from."""
    folder = RunFolder(tmp_path / "run")
    folder.prepare(recipe, "auto").release()
    (tmp_path / "mine.py").write_text("mended\n")
    folder.prepare(recipe, "auto").release()
    assert json.loads((folder.path / "contents.json").read_text()) == contents_of(recipe)


def test_a_deepspeed_file_counts_where_it_decides(recipe: Recipe, tmp_path: Path) -> None:
    """Buckets and what is printed are free, as memory knobs are; how gradients travel is not, nor that a file came."""
    file = tmp_path / "ds.json"
    folder = trained(recipe, tmp_path / "run")
    file.write_text('{"steps_per_print": 5, "zero_optimization": {"reduce_bucket_size": 1024}}')
    folder.prepare(recipe, "auto", file).release()
    file.write_text('{"communication_data_type": "fp16"}')
    with pytest.raises(ConfigError, match="the content of --ds-config"):
        folder.prepare(recipe, "auto", file).release()
    other = trained(recipe, tmp_path / "other", file)
    with pytest.raises(ConfigError, match="the content of --ds-config"):
        other.prepare(recipe, "auto").release()


def test_a_file_that_cannot_be_read(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names it."""

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"/pipeline/config\.json can't be read: Permission denied"):
        contents_of(recipe)


def test_large_files_that_are_not_what_they_are_called(tmp_path: Path) -> None:
    """Headers of any kind: a fingerprint all the same, from the bytes."""
    for number, head in enumerate((b"\xff" * 8, (10**15).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]")):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(head + b"x" * (WHOLE_BYTES + 5))
        before = fingerprints(file)
        assert len(before[file.name]) == 64
        file.write_bytes(head + b"x" * (WHOLE_BYTES + 4) + b"y")
        assert fingerprints(file) != before


def test_the_middle_of_torchs_own_format(tmp_path: Path) -> None:
    """One element of one tensor of a large .pt: its checksum stands at the end."""
    tensors = {f"w{number}": torch.zeros(300, 300) for number in range(8)}
    torch.save(tensors, tmp_path / "w.pt")
    before, size = fingerprints(tmp_path), (tmp_path / "w.pt").stat().st_size
    tensors["w4"][150, 150] = 1.0
    torch.save(tensors, tmp_path / "w.pt")
    assert size > WHOLE_BYTES and size == (tmp_path / "w.pt").stat().st_size
    assert fingerprints(tmp_path) != before


def sections(section: type[Section] = Section) -> Iterator[type[Section]]:
    for below in section.__subclasses__():
        yield below
        yield from sections(below)


def test_no_path_is_forgotten() -> None:
    """Every key of any section whose value is looked for on the disk."""
    path_keys = set()
    for section in sections():
        for validator in section.__pydantic_decorators__.field_validators.values():
            if "resolve_" in inspect.getsource(validator.func):
                path_keys |= set(validator.info.fields)
    assert path_keys == set(PATH_KEYS)


@pytest.fixture
def shortcut(tmp_path: Path) -> Recipe:
    """One with a folder of nine real images, which are read by no one here."""
    (tmp_path / "real").mkdir()
    for number in range(9):
        (tmp_path / "real" / f"{number}.png").write_bytes(bytes([number]) * 100)
    return check_recipe(
        {
            "model": {"kind": "embedded"},
            "sampler": {"steps": 4, "sub_schedule": "quadratic", "final_std": 0.001},
            "method": {"kind": "sft_pg", "real": {"kind": "folder", "path": "real"}, "minibatch": 4},
            "run": {"images_per_round": 16},
        },
        source="test",
        folder=tmp_path,
    )


REAL: dict[str, tuple[str, bytes | None]] = {
    "another pixel": ("3.png", b"\x03" * 99 + b"x"),
    "another size": ("4.png", b"\x04" * 101),
    "an image more": ("9.png", b"nine"),
    "an image less": ("8.png", None),
}


@pytest.mark.parametrize("what", REAL)
@pytest.mark.parametrize("most", [10, 4])
def test_other_real_images_are_refused_by_name(
    what: str, most: int, shortcut: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are more than are read, names and sizes of all are known, and the content of every third."""
    monkeypatch.setattr("memdiff.recipe.contents.MOST_IMAGES", most)
    folder = trained(shortcut, tmp_path / "run")
    (tmp_path / "real" / "notes.txt").write_text("no image")
    folder.prepare(shortcut, "auto").release()
    name, content = REAL[what]
    file = tmp_path / "real" / name
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="holds a run of another recipe") as raised:
        folder.prepare(shortcut, "auto").release()
    named = name if most == 10 or what == "another pixel" else "*: names and sizes of "
    assert f"the content of method.real.path ({named}" in str(raised.value)
    assert raised.value.exit_code == 2


def test_stored_fingerprints_may_be_anything() -> None:
    """contents.json of a folder that came from elsewhere: what is null there and absent here is a difference too."""
    after = {"model.path": {"a": "1"}}
    assert changed_contents({"model.path": {"a": "1", "b": None}}, after) == ["the content of model.path (b)"]
    assert changed_contents({"model.path": {"a": 1}}, after) == ["the content of model.path (a)"]
    for nothing in (None, [], 3, "x"):
        assert changed_contents({"model.path": nothing, "other": {}}, after) == []
