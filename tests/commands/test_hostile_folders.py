"""What a folder or file of strangers must not do: keep a command waiting, lead it elsewhere, end it in a traceback.

The shortest inputs of what `python -m tests.fuzz` came upon, each under the mechanism that answers it.
"""

import errno
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, UnidentifiedImageError

from memdiff.engine.manifest import defect_of, round_of
from memdiff.errors import CheckpointError, ConfigError
from memdiff.evaluation.prompt_sets import read_prompt_set
from memdiff.evaluation.request import _size_of
from memdiff.loggers.loggers import KEY_FILE, key_of
from memdiff.models.folder import unet_layers
from memdiff.models.load import pipeline_kind
from memdiff.models.lora.paths import find_adapter
from memdiff.processes.file_lock import FileLock
from memdiff.recipe.init import Wish, write_recipe
from memdiff.recipe.reading import read_recipe
from memdiff.reporting.pictures import small_jpeg
from memdiff.reporting.rows import read_rows
from memdiff.rewards.config import DigitsConfig
from memdiff.rewards.families_config import ClipSimilarityConfig
from memdiff.runtime.exit_codes import guarded
from memdiff.runtime.image_files import sample_settings, sampled_images
from memdiff.runtime.network_files import trouble_in
from memdiff.runtime.small_files import free_of_others, own_bytes
from memdiff.sampling.processes import clear_folder, sample_over_processes
from memdiff.sampling.sample import write_png
from memdiff.sampling.source import locate
from memdiff.scoring.images import read_image
from memdiff.training.bookkeeping import Stopwatch
from memdiff.training.copied_run import bring_run
from memdiff.training.launcher import opened
from memdiff.training.loop import Run
from memdiff.training.progress import RunProgress
from memdiff.training.run_folder import RunFolder
from tests.house.rooms import PACKAGE

Plant = Callable[[Path, Path], None]


def a_pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def a_circle(path: Path, secret: Path) -> None:
    path.symlink_to(path.name)


def a_folder(path: Path, secret: Path) -> None:
    path.mkdir()


def deep_brackets(path: Path, secret: Path) -> None:
    path.write_text("[" * 100_000)


PLANTS = [a_pipe, a_link, a_circle, a_folder, deep_brackets]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of somebody else's, which is a valid file of a run as well."""
    file = tmp_path / "secret"
    file.write_text('{"round": 7, "state": "complete", "world_size": 1}\n')
    return file


@pytest.mark.parametrize("plant", PLANTS)
def test_a_runs_own_files_are_regular_files_in_it(tmp_path: Path, secret: Path, plant: Plant) -> None:
    """Status, contents, rows, state and manifest: what else lies there is as good as nothing, or one line."""
    run = RunFolder(tmp_path / "run")
    checkpoint = run.checkpoints / "round_000001"
    checkpoint.mkdir(parents=True)
    for file in (run.path / "status.json", run.path / "contents.json", run.metrics, run.path / "config.yaml"):
        plant(file, secret)
    (checkpoint / "MANIFEST.json").write_text("{}")
    plant(checkpoint / "state.json", secret)
    assert run.status() == {} and run._trained_with() == {}
    assert round_of(checkpoint) is None and defect_of(checkpoint) is not None
    (checkpoint / "MANIFEST.json").unlink()
    plant(checkpoint / "MANIFEST.json", secret)
    assert defect_of(checkpoint) is not None
    if plant is not deep_brackets:  # a last line may be torn
        with pytest.raises(ConfigError, match=r"can't read .*metrics\.jsonl"):
            read_rows(run.metrics)
    with pytest.raises(CheckpointError, match=r"config\.yaml can't be read"):
        run.recipe()


@pytest.mark.parametrize("plant", [a_pipe, a_link, a_circle])
def test_nothing_is_written_through_a_link(tmp_path: Path, secret: Path, plant: Plant) -> None:
    """Rows, events, status, words of a grid, the loggers' key and the ranks' log, also where the link lies under the
    name of what is written first."""
    before, run = secret.read_bytes(), RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.samples.mkdir()
    names = ("status.json", "status.json.tmp", "plan.json.tmp", "launcher.log", "metrics.jsonl", "events.jsonl")
    for name in (*names, KEY_FILE, "samples/round_000003.json"):
        plant(run.path / name, secret)
    run.write_status("running", round_number=3)
    run.write_plan({"fits": True})
    assert run.status()["round"] == 3 and json.loads((run.path / "plan.json").read_text()) == {"fits": True}
    with opened(run.path / "launcher.log") as log:
        log.write(b"words")
    assert (run.path / "launcher.log").read_bytes() == b"words"
    with pytest.raises(OSError):
        run.add_row({"round": 4})
    run.add_event("started", 3)  # which is lost there
    run.write_tiles(3, {"prompts": ["a"]})
    assert json.loads((run.samples / "round_000003.json").read_text()) == {"prompts": ["a"]}
    key = key_of(run.path, begins=False)
    assert json.loads((run.path / KEY_FILE).read_text()) == {"key": key} and key_of(run.path, begins=False) == key
    assert secret.read_bytes() == before


@pytest.mark.parametrize("plant", [a_pipe, a_link, a_circle, a_folder])
def test_what_is_no_picture_is_not_animated(tmp_path: Path, secret: Path, plant: Plant) -> None:
    """The grids of a run are regular files; what can't be read of them costs the animation and not the run."""
    run = RunFolder(tmp_path / "run")
    run.samples.mkdir(parents=True)
    plant(run.sample_file(1), secret)
    run.sample_file(2).write_bytes(b"no PNG")
    assert list(run.sample_files()) == [2]
    said: list[str] = []
    loop: Any = SimpleNamespace(progress=SimpleNamespace(say=said.append), folder=run)
    loop.warned = partial(Run.warned, loop)
    Run.write_animation(loop)
    assert len(said) == 1 and said[0].startswith("warning: the animation could not be written: ")
    assert "round_000002.png is not a readable image" in said[0] and not (run.samples / "evolution.gif").exists()


def test_a_time_that_is_none_counts_nothing() -> None:
    """status.json is read back: its seconds may be any number of JSON."""
    for before in (10**400, -(2**64), math.nan, math.inf, -1, None, "x", [1]):
        assert 0 <= Stopwatch(before).total() < 1e9
    assert 7.5 <= Stopwatch(7.5).total() < 1e9


@pytest.mark.parametrize("plant", [a_pipe, a_link, a_circle])
def test_samples_are_not_written_through_a_link(tmp_path: Path, secret: Path, plant: Plant) -> None:
    """Under the name of an image's first part in any folder; nor the grid where the link leads to nothing yet."""
    before = secret.read_bytes()
    plant(tmp_path / "image_000000.tmp", secret)
    write_png(tmp_path / "image_000000.png", torch.zeros(3, 4, 4, dtype=torch.uint8))
    with Image.open(tmp_path / "image_000000.png") as image:
        assert image.size == (4, 4)
    assert secret.read_bytes() == before


def test_a_grid_and_a_recipe_are_not_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    for name in ("grid.png", "settings.json"):
        (out / name).symlink_to(elsewhere)

    def sample(request: Any, folder: Path, world_size: int) -> None:
        write_png(folder / "image_000000.png", torch.zeros(3, 4, 4, dtype=torch.uint8))

    monkeypatch.setattr("memdiff.sampling.processes._sample", sample)
    request: Any = SimpleNamespace(out=str(out), num_images=1, prompts=None, model_dump_json=lambda **_: "{}")
    sample_over_processes(request, 1)
    assert not elsewhere.exists() and not (out / "grid.png").is_symlink()
    (tmp_path / "new.yaml").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=r"new\.yaml can't be written: File exists"):
        write_recipe(Wish("digits", [{"kind": "digits"}]), [DigitsConfig(kind="digits")], tmp_path / "new.yaml")
    assert not elsewhere.exists()


def test_a_models_links_and_pipes_are_removed_before_it_is_written(tmp_path: Path, secret: Path) -> None:
    """A writer waits for a pipe's reader for ever."""
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    (model / "unet").mkdir(parents=True)
    elsewhere.mkdir()
    (model / "unet/config.json").symlink_to(secret)
    (model / "vae").symlink_to(elsewhere)
    (model / "kept.json").write_text("{}")
    os.mkfifo(model / "README.md")
    free_of_others(model)
    assert sorted(path.name for path in model.rglob("*")) == ["kept.json", "unet"]
    assert secret.exists() and elsewhere.is_dir()


def test_links_within_a_folder_are_its_own(tmp_path: Path) -> None:
    """And those of a snapshot in the hub's cache its repository's."""
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b/blobs").mkdir()
    for folder, blob in ((tmp_path, "blob"), (snapshot, "../../blobs/4567")):
        (folder / blob).write_text("{}")
        (folder / "file.json").symlink_to(blob)
        assert own_bytes(folder / "file.json", within=folder) == b"{}"
    (snapshot / "other.json").symlink_to("../../../blob")
    with pytest.raises(OSError, match="a link out of its folder"):
        own_bytes(snapshot / "other.json", within=snapshot)
    with pytest.raises(OSError, match="File too large"):
        own_bytes(tmp_path / "file.json", within=tmp_path, most_bytes=1)


def test_a_run_with_a_link_out_of_it_is_not_copied(tmp_path: Path, secret: Path) -> None:
    copied = tmp_path / "copied"
    (copied / "checkpoints").mkdir(parents=True)
    (copied / "config.yaml").write_text("{}")
    (copied / "inner").symlink_to("config.yaml")
    (copied / "samples").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="samples is a link out of the run"):
        bring_run(str(copied), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (copied / "samples").unlink()
    assert bring_run(str(copied), tmp_path / "out") and (tmp_path / "out/inner").read_text() == "{}"


@pytest.mark.parametrize("plant", [a_pipe, a_link, a_folder])
def test_a_lock_that_is_none_is_not_waited_for(tmp_path: Path, secret: Path, plant: Plant) -> None:
    plant(tmp_path / "run.lock", secret)
    lock = FileLock(tmp_path / "run.lock")
    assert lock.holder().process == ""
    with pytest.raises(ConfigError, match=r"can.t be written"):
        RunFolder(tmp_path)._locked()
    assert secret.read_text().startswith('{"round": 7')


def test_pipes_among_prompts_and_weights(tmp_path: Path) -> None:
    for name in ("p.json", "p.csv", "p.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ConfigError, match="it is a pipe; give a regular file"):
            read_prompt_set(tmp_path / name)
    os.mkfifo(tmp_path / "x.safetensors")
    assert unet_layers(tmp_path) is None


def test_a_folder_under_the_name_of_an_image(tmp_path: Path) -> None:
    """Is no image, and stays where it is when the folder is cleared."""
    (tmp_path / "image_000000.png").mkdir()
    (tmp_path / "image_000001.png").write_bytes(b"")
    (tmp_path / "settings.json").write_text('{"num_images": 1, "sampler": {}, "prompts": []}')
    assert [file.name for file in sampled_images(tmp_path)] == ["image_000001.png"]
    clear_folder(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["image_000000.png", "settings.json"]


def test_what_cannot_be_opened_is_one_line(tmp_path: Path, capsys: Any) -> None:
    """Of every command; an error of ours that names no file stays a traceback."""

    def opens() -> None:
        (tmp_path / ("\x1b[31m" + "x" * 300)).read_bytes()

    with pytest.raises(SystemExit) as caught:
        guarded(opens)
    said = capsys.readouterr().err
    assert caught.value.code == 5 and said.count("\n") == 1 and "can't be used: File name too long" in said
    assert "\x1b" not in said
    with pytest.raises(OSError, match="nameless"):
        guarded(lambda: (_ for _ in ()).throw(OSError("nameless")))


def test_links_in_a_circle_are_one_line(tmp_path: Path, capsys: Any) -> None:
    """Wherever a path is followed; another RuntimeError stays a traceback."""
    a_circle(tmp_path / "round", tmp_path)
    with pytest.raises(SystemExit) as caught:
        guarded(lambda: (tmp_path / "round").resolve() / "x" and (tmp_path / "round").read_bytes())
    said = capsys.readouterr().err
    assert caught.value.code == 5 and said.count("\n") == 1 and "round can't be used: Too many levels" in said
    with pytest.raises(RuntimeError, match="other"):
        guarded(lambda: (_ for _ in ()).throw(RuntimeError("other")))


@pytest.mark.parametrize("plant", [a_pipe, a_circle, a_folder])
def test_what_is_no_file_is_no_adapter(tmp_path: Path, plant: Plant) -> None:
    """Under the name that is read, and as the only one of a folder."""
    for name in ("pytorch_lora_weights.safetensors", "mine.safetensors"):
        plant(tmp_path / name, tmp_path)
        with pytest.raises(ConfigError, match=r"holds no adapter_model\.safetensors"):
            find_adapter(tmp_path)


@pytest.mark.parametrize("word", ["", "{}", "{}/scores.json", "--json={}/scores.json"])
def test_a_file_that_nobody_named_is_a_bug(word: str, tmp_path: Path, capsys: Any) -> None:
    """What is not there stays a traceback unless the command line names it, or the folder that it is to be in."""
    words = ["report", word.format(tmp_path / "place")]
    with pytest.raises(SystemExit if word else FileNotFoundError):
        guarded((tmp_path / "place" / "scores.json").read_bytes, words)
    said = capsys.readouterr().err
    assert not word or (said.startswith("memdiff: error[5]: ") and "scores.json can't be used: No such file" in said)


def test_of_the_machine_and_of_the_package(tmp_path: Path, capsys: Any) -> None:
    """A full disk is nobody's mistake, whatever it was that was to be written; a file of the package is ours to have,
    also where a person names the folder of the checkout."""

    def is_full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit) as caught:
        guarded(is_full)
    assert caught.value.code == 5 and "No space left" in capsys.readouterr().err
    of_ours = Path(guarded.__code__.co_filename).parents[1] / "no.json"
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        guarded(of_ours.read_bytes, ["report", str(of_ours.parents[1])])


@pytest.mark.parametrize("key", ["KIND", "kinds", "knd", "qkind"])
def test_a_misspelt_kind_is_named(tmp_path: Path, key: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"model: {{{key}: embedded}}\nmethod: {{kind: reinforce}}\nreward: [{{kind: digits}}]\n")
    with pytest.raises(ConfigError, match=rf"model needs a kind; is model\.{key} meant to be it"):
        read_recipe(file)


def test_pictures_that_another_program_would_read_are_refused(tmp_path: Path) -> None:
    """PostScript under the name of a PNG: Pillow would start Ghostscript for it."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="EPS")
    for read in (read_image, small_jpeg, _size_of):
        with pytest.raises((ConfigError, UnidentifiedImageError)) as caught:
            read(tmp_path / "a.png")
        assert "UnidentifiedImageError" in f"{type(caught.value).__name__} {caught.value}"
    opened = [line for file in PACKAGE.rglob("*.py") for line in file.read_text().splitlines() if "Image.open(" in line]
    assert opened and all("formats=" in line for line in opened), opened


def test_what_a_run_quotes_does_not_steer_a_terminal(capsys: Any) -> None:
    """Of the messages of libraries and files: written out, spaces and lines kept."""
    with RunProgress(rounds=1, shown=True) as progress:
        progress.say("two  spaces \x1b[31mred\x07\nnext")
    assert "two  spaces \\x1b[31mred\\x07\nnext" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model_index.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_pipe_in_a_folder_of_networks_is_not_waited_for(name: str, tmp_path: Path) -> None:
    """In the place of a file that a library would open: a model's, a VAE's, a reward's."""
    (tmp_path / "unet").mkdir()
    os.mkfifo(tmp_path / name)
    for read in (lambda: locate(str(tmp_path), best=False, own_adapter=True), lambda: pipeline_kind(str(tmp_path))):
        with pytest.raises(ConfigError, match="is no regular file"):
            read()
    with pytest.raises(ValueError, match="is no regular file"):
        ClipSimilarityConfig(kind="clip_similarity", path=str(tmp_path))


@pytest.mark.parametrize("value", [10**400, 2**31, 1e300, [2, 10**9]])
@pytest.mark.parametrize("key", ["num_hidden_layers", "layers_per_block", "depths", "encoder_layers"])
def test_layers_without_end_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    """A library would build one after the other until the memory is full; also those of a tower within."""
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder/config.json").write_text(json.dumps({"text_config": {key: value}, "layer_norm_eps": 9}))
    for read in (lambda: locate(str(tmp_path), best=False, own_adapter=True), lambda: pipeline_kind(str(tmp_path))):
        with pytest.raises(ConfigError, match=rf"asks for more than 1000 of {key}"):
            read()
    with pytest.raises(ValueError, match=rf"asks for more than 1000 of {key}"):
        ClipSimilarityConfig(kind="clip_similarity", path=str(tmp_path))
    config = {"layers_per_block": 2, "block_out_channels": [320, 1280], "sample_size": 1024, "depths": [3, 27, 3]}
    (tmp_path / "text_encoder/config.json").write_text(json.dumps(config))
    assert trouble_in(tmp_path) is None


def test_settings_that_a_link_leads_to_are_not_a_folders_own(tmp_path: Path) -> None:
    """What lies elsewhere says nothing of the images here."""
    settings = {"num_images": 1, "sampler": {}, "prompts": []}
    for folder in ("own", "linked"):
        (tmp_path / folder).mkdir()
    (tmp_path / "own" / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "linked" / "settings.json").symlink_to(tmp_path / "own" / "settings.json")
    assert sample_settings(tmp_path / "own") == settings and sample_settings(tmp_path / "linked") is None
