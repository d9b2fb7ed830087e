"""Promises of `memdiff score`'s core: rewards of image files, in order, as a table and as JSON.

Shapes: B images, C channels, H W pixels.
"""

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from memdiff.errors import ConfigError, RewardError
from memdiff.runtime.image_files import find_images, prompts_beside
from memdiff.scoring.images import (
    ScoreRow,
    read_image,
    score_images,
    score_table,
    scores_json,
    summary_table,
)

CPU = torch.device("cpu")


class Brightness:
    """The mean of the pixels; records the batches it gets."""

    differentiable = True
    networks: Sequence[torch.nn.Module] = ()

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.batches.append(tuple(images_BCHW.shape))
        return images_BCHW.flatten(1).mean(dim=1)


class Letters:
    """The number of letters of the prompt."""

    differentiable = False
    networks: Sequence[torch.nn.Module] = ()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([float(len(prompt)) for prompt in prompts])


def paint(path: Path, level: int, *, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    Image.new(mode, size, level if mode == "L" else (level,) * len(mode)).save(path)
    return path


def test_folders_globs_and_files_are_read_in_order(tmp_path: Path) -> None:
    """Sorted in each source, sources in their order, none twice; other files and folders inside are left out."""
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("a/2.png", "a/1.jpg", "a/deep/0.png", "b.WEBP", "c.png"):
        paint(tmp_path / name, 9)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    paths = find_images(
        [str(tmp_path / "a"), str(tmp_path / "*.png"), str(tmp_path / "b.WEBP"), str(tmp_path / "c.png")]
    )
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["a/1.jpg", "a/2.png", "c.png", "b.WEBP"]
    deep = find_images([str(tmp_path / "**" / "*.png")])
    assert [path.name for path in deep] == ["2.png", "0.png", "c.png"]


def as_sampled(folder: Path, prompts: list[str], count: int = 5) -> Path:
    """A folder as `memdiff sample` leaves it, and files of others in it."""
    folder.mkdir(parents=True)
    settings = {"num_images": count, "sampler": {"steps": 4}, "prompts": prompts}
    (folder / "settings.json").write_text(json.dumps(settings))
    for number in range(count):
        paint(folder / f"image_{number:06d}.png", 10 * number)
    for name in ("grid.png", "image_best.png", "holiday.jpg", "._image_000001.png"):
        paint(folder / name, 255)
    return folder


def test_of_a_sampled_folder_only_its_images_count(tmp_path: Path) -> None:
    """As a folder: exactly the images. As a glob: what matches, but never the grid. By its own name: even that."""
    folder = as_sampled(tmp_path / "s", [], 3)
    images = [f"image_{number:06d}.png" for number in range(3)]
    assert [path.name for path in find_images([str(folder)])] == images
    assert [path.name for path in find_images([str(folder / "*.png")])] == [*images, "image_best.png"]
    assert [path.name for path in find_images([str(tmp_path / "**" / "*")])] == [
        "holiday.jpg",
        *images,
        "image_best.png",
    ]
    assert find_images([str(folder / "grid.png")]) == [folder / "grid.png"]


@pytest.mark.parametrize("settings", [None, "{", "[]", '{"editor.fontSize": 12}', '{"prompts": 3}'])
def test_in_other_folders_every_image_counts(settings: str | None, tmp_path: Path) -> None:
    """Whatever settings.json lies there, it is not memdiff's; hidden files are no images of anybody."""
    folder = as_sampled(tmp_path / "s", [], 1)
    (folder / "settings.json").unlink()
    if settings is not None:
        (folder / "settings.json").write_text(settings)
    names = [path.name for path in find_images([str(folder)])]
    assert names == ["grid.png", "holiday.jpg", "image_000000.png", "image_best.png"]
    assert prompts_beside(find_images([str(folder)])) == [""] * 4


def test_the_grids_of_a_run_are_no_images(tmp_path: Path) -> None:
    """samples/ of a run folder holds one grid an evaluation; the line says how to get images."""
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}")
    paint(tmp_path / "run" / "samples" / "round_000010.png", 1)
    for source in ("run/samples", "run/**/*.png"):
        with pytest.raises(ConfigError, match="memdiff sample RUN makes images"):
            find_images([str(tmp_path / source)])
    (tmp_path / "run" / "config.yaml").unlink()
    assert len(find_images([str(tmp_path / "run" / "samples")])) == 1


def test_prompts_are_read_beside_the_images(tmp_path: Path) -> None:
    """Image i has prompt i mod P, whatever part of the folder is scored; other images have none."""
    folder = as_sampled(tmp_path / "s", ["a", "b"])
    assert prompts_beside(find_images([str(folder)])) == ["a", "b", "a", "b", "a"]
    some = [folder / "image_000003.png", folder / "holiday.jpg", paint(tmp_path / "image_000001.png", 1)]
    assert prompts_beside(some) == ["b", "", ""]
    assert prompts_beside(find_images([str(as_sampled(tmp_path / "without", [], 1))])) == [""]


def test_what_has_no_end_is_no_image(tmp_path: Path) -> None:
    """Pipes, devices and links to them are not opened, by name, by pattern or in a folder."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for source in ("/dev/zero", *(str(tmp_path / name) for name in ("pipe.png", "zero.png", "*.png", ""))):
        with pytest.raises(ConfigError, match="no image in"):
            find_images([source])


@pytest.mark.parametrize("source", ["nothing/*.png", "no/such/folder", "empty"])
def test_a_source_without_images_is_one_line(source: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no image in") as caught:
        find_images([str(tmp_path / source)])
    assert source in str(caught.value) and "\n" not in str(caught.value)


def test_scores_by_hand(tmp_path: Path) -> None:
    """Uniform images of level v have a mean of v / 255; each row keeps its path and prompt."""
    paths = [paint(tmp_path / f"{level}.png", level) for level in (0, 51, 102, 255, 153)]
    prompts = ["", "a", "bb", "ccc", "dddd"]
    rows = score_images(paths, {"light": Brightness(), "letters": Letters()}, prompts, device=CPU, chunk=2)
    assert [row.image for row in rows] == paths and [row.prompt for row in rows] == prompts
    assert [row.scores["light"] for row in rows] == pytest.approx([0, 0.2, 0.4, 1, 0.6], abs=1e-6)
    assert [row.scores["letters"] for row in rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_chunks_hold_one_size_and_do_not_matter(chunk: int, tmp_path: Path) -> None:
    """Images of two sizes mixed: at most a chunk at once, one size in each, scores in the files' order."""
    sizes = [(8, 6)] * 3 + [(5, 5)] * 2 + [(8, 6)] * 3
    paths = [paint(tmp_path / f"{index}.png", 10 * index, size=size) for index, size in enumerate(sizes)]
    reward = Brightness()
    rows = score_images(paths, {"light": reward}, [""], device=CPU, chunk=chunk)
    assert [row.scores["light"] for row in rows] == pytest.approx([10 * i / 255 for i in range(8)], abs=1e-6)
    assert sum(batch[0] for batch in reward.batches) == 8 and max(batch[0] for batch in reward.batches) <= chunk


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB"])
def test_every_mode_is_read_as_three_channels(mode: str, tmp_path: Path) -> None:
    image_CHW = read_image(paint(tmp_path / "x.png", 51, mode=mode))
    assert image_CHW.shape == (3, 6, 8) and image_CHW.dtype == torch.float32
    assert torch.allclose(image_CHW, torch.tensor(0.2))


def test_turned_photographs_are_turned_upright(tmp_path: Path) -> None:
    """Exif orientation 6 says: turn by 90 degrees clockwise. The left column becomes the top row."""
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, 0] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    image_CHW = read_image(tmp_path / "x.png")
    assert image_CHW.shape == (3, 6, 4) and image_CHW[:, 0].min() == 1 and image_CHW[:, 1:].max() == 0


@pytest.mark.parametrize("cut", [0, 20, 60])
def test_a_broken_file_is_one_line(cut: int, tmp_path: Path) -> None:
    path = paint(tmp_path / "x.png", 51, size=(64, 64))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match=r"x\.png is not an image") as caught:
        score_images([path], {"light": Brightness()}, [""], device=CPU)
    assert "\n" not in str(caught.value)


def test_the_number_of_prompts_is_checked(tmp_path: Path) -> None:
    paths = [paint(tmp_path / f"{index}.png", 1) for index in range(3)]
    with pytest.raises(ConfigError, match="3 images, 2 given"):
        score_images(paths, {"light": Brightness()}, ["a", "b"], device=CPU)


def test_a_reward_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    class Scalar(Letters):
        def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            return images_BCHW.mean()

    with pytest.raises(RewardError, match="reward mine"):
        score_images([paint(tmp_path / "x.png", 1)], {"mine": Scalar()}, [""], device=CPU)


def test_no_graph_is_built(tmp_path: Path) -> None:
    """A differentiable reward is scored without keeping anything for a backward."""

    class Asks(Brightness):
        def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            return super().__call__(images_BCHW, prompts)

    assert score_images([paint(tmp_path / "x.png", 255)], {"a": Asks()}, [""], device=CPU)[0].scores == {"a": 1.0}


ROWS = [
    ScoreRow(Path("[red]a.png"), "x", {"light": 1.0, "hps": 0.25}),
    ScoreRow(Path("b.png"), "y", {"light": 3.0, "hps": 0.75}),
]


def printed(rows: list[ScoreRow], table: Callable[[Sequence[ScoreRow]], Table] = score_table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_summary_has_mean_and_std_and_how_many() -> None:
    """Scores 1 and 3: mean 2, std (ddof 0) 1, of two images; a line a reward, names as they are, markup and all."""
    lines = [line.split() for line in printed(ROWS, summary_table).splitlines()]
    cells = [[word for word in line if word not in "│┃"] for line in lines]
    assert ["light", "2.0000", "1.0000", "2"] in cells and ["hps", "0.5000", "0.2500", "2"] in cells
    marked = printed([ScoreRow(Path("a.png"), "", {"[b]x": 1.0})], summary_table)
    assert "[b]x" in marked and printed([], summary_table)


def test_the_table_has_each_score() -> None:
    """Names are printed as they are, markup and all; prompts where they differ."""
    text = printed(ROWS)
    for word in ("[red]a.png", "light", "hps", "1.0000", "0.7500", "prompt"):
        assert word in text
    assert "prompt" not in printed(ROWS[:1]) and printed([])


def test_the_json_holds_the_same_numbers() -> None:
    document = json.loads(scores_json(ROWS))
    assert document["images"][0] == {"image": "[red]a.png", "prompt": "x", "scores": {"light": 1.0, "hps": 0.25}}
    assert document["mean"] == {"light": 2.0, "hps": 0.5} and document["std"] == {"light": 1.0, "hps": 0.25}
    assert json.loads(scores_json([])) == {"images": [], "mean": {}, "std": {}}


def test_what_is_not_finite_is_null_in_the_json() -> None:
    rows = [ScoreRow(Path("a.png"), "", {"light": float("nan")}), ScoreRow(Path("b.png"), "", {"light": 1.0})]
    document = json.loads(scores_json(rows))
    assert [image["scores"]["light"] for image in document["images"]] == [None, 1.0]
    assert document["mean"]["light"] is None and "nan" in printed(rows)


def test_progress_is_shown_on_the_console_given(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    score_images([paint(tmp_path / "x.png", 1)], {"light": Brightness()}, [""], device=CPU, console=console)
    assert isinstance(console.file, io.StringIO) and "1/1" in console.file.getvalue()
