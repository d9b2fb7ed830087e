"""`memdiff sample`: exactly N images, each with its own noise, on any number of processes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memdiff.runtime.image_files import SETTINGS
from memdiff.sampling.request import SampleRequest, make_request, replaces_others
from tests.helpers.processes import memdiff

ROOT = Path(__file__).resolve().parents[2]


def images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("image_*.png"))])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images in batches of three on one process."""
    out = tmp_path_factory.mktemp("alone")
    done = memdiff("sample", "digits", "--num-images", 7, "--batch-size", 3, "--steps", 4, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    return out


def test_exactly_n_images_a_grid_and_the_settings(alone: Path) -> None:
    """Seven different PNGs, grid.png, and a JSON that says how they came about."""
    pictures = images(alone)
    assert pictures.shape == (7, 16, 16) and len({picture.tobytes() for picture in pictures}) == 7
    settings = json.loads((alone / "settings.json").read_text())
    assert (settings["num_images"], settings["batch_size"], settings["seed"]) == (7, 3, 0)
    assert settings["sampler"]["steps"] == 4 and settings["sampler"]["eta"] == 1.0
    with Image.open(alone / "grid.png") as grid:
        assert min(grid.size) > 100


def test_processes_and_batches_change_no_image(alone: Path, tmp_path: Path) -> None:
    """Two processes at the same batch shape: the same bytes. Another batch shape: within one grey level of rounding."""
    assert (
        memdiff(
            "sample",
            "digits",
            "--num-images",
            7,
            "--batch-size",
            3,
            "--steps",
            4,
            "--gpus",
            2,
            "--out",
            tmp_path / "two",
        ).returncode
        == 0
    )
    assert np.array_equal(images(tmp_path / "two"), images(alone))
    assert (
        memdiff(
            "sample", "digits", "--num-images", 4, "--batch-size", 4, "--steps", 4, "--out", tmp_path / "batch"
        ).returncode
        == 0
    )
    assert np.abs(images(tmp_path / "batch").astype(int) - images(alone)[:4].astype(int)).max() <= 1


def test_fewer_images_the_second_time_leaves_none_over(tmp_path: Path) -> None:
    """The folder always holds the images of the last call, and no one else's images are touched."""
    for count in (3, 2):
        assert (
            memdiff("sample", "digits", "--num-images", count, "--steps", 2, "--out", tmp_path / "out").returncode == 0
        )
    assert len(images(tmp_path / "out")) == 2
    (tmp_path / "mine").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "mine" / "image_000001.png")
    refused = memdiff("sample", "digits", "--num-images", 1, "--out", tmp_path / "mine")
    assert refused.returncode == 2 and "did not write" in refused.stderr
    assert (tmp_path / "mine" / "image_000001.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/at/all"], "no such folder"),
        (["google/nothing-here"], "hf download google/nothing-here"),
        (["digits", "--num-images", "0"], "--num-images"),
        (["digits", "--steps", "1001"], "steps"),
        (["digits", "--config", "digits_text"], "--config goes with a model in one file"),
        (["digits", "--best"], "--best needs a run folder"),
        (["digits", "--precision", "fp8"], "precision"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = memdiff("sample", *arguments, *([] if "--best" in arguments else ["--out", tmp_path / "out"]))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.startswith("memdiff: error[2]: ") and done.stderr.count("\n") == 1


def request_for(out: Path | None = None, seed: int = 0, batch_size: int | None = None) -> SampleRequest:
    """Four images of the digits model."""
    nothing = dict.fromkeys(("eta", "guidance", "prompt", "prompts", "lora_scale", "adapter_steps"))
    return make_request(
        "digits", best=False, num_images=4, batch_size=batch_size, steps=2, seed=seed, mix=(), precision="auto",
        out=out, **nothing,
    )  # fmt: skip


def test_a_default_folder_keeps_images_of_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 0, then 1, then 0 again, then 1 in other batches: two folders. A folder that is named is taken."""
    monkeypatch.chdir(tmp_path)
    folders = []
    for seed, batch_size in ((0, None), (1, None), (0, None), (1, 2)):
        request = request_for(seed=seed, batch_size=batch_size)
        folder = Path(request.out)
        folder.mkdir(exist_ok=True)
        (folder / SETTINGS).write_text(request.model_dump_json())
        folders.append(folder.name)
    assert folders == ["samples", "samples_2", "samples", "samples_2"]
    named = request_for(tmp_path / "samples", seed=1)
    assert named.out == str(tmp_path / "samples") and replaces_others(named, tmp_path / "samples")
