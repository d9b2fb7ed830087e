"""A model in a run folder is written whole or not at all, and what people put beside it stays."""

from pathlib import Path

import pytest

from memdiff.training.saved_model import beside


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """A model of two files, one of a person's beside them."""
    folder = tmp_path / "model_best"
    (folder / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/weights", "notes.txt"):
        (folder / name).write_text("before")
    return folder


def test_a_new_model_comes_in_the_place_of_the_old_one(best: Path) -> None:
    """Until all is written what was there is whole; a file of another name stays."""
    with beside(best) as partial:
        for name in ("model_index.json", "unet/weights", "adapter/weights"):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text("after")
        assert set(contents(best).values()) == {"before"}
    assert contents(best) == {
        "model_index.json": "after", "unet/weights": "after", "adapter/weights": "after", "notes.txt": "before",
    }  # fmt: skip
    assert [path.name for path in best.parent.iterdir()] == ["model_best"]


def test_a_model_that_can_not_be_written_leaves_the_one_before(best: Path) -> None:
    """Wherever in it the disk fills up."""
    before = contents(best)
    with pytest.raises(OSError, match="No space"), beside(best) as partial:
        (partial / "model_index.json").write_text("after")
        raise OSError(28, "No space left on device")
    assert contents(best) == before and [path.name for path in best.parent.iterdir()] == ["model_best"]


def test_what_a_killed_run_left_goes_and_links_are_not_followed(best: Path, tmp_path: Path) -> None:
    """In the place of the new folder lies half a model, or a link; in the old one a link in a file's place."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("another's")
    half = tmp_path / "model_best.tmp"
    half.mkdir()
    (half / "half").write_text("")
    for _ in range(2):
        (best / "unet/weights").unlink()
        (best / "unet/weights").symlink_to(elsewhere / "weights")
        with beside(best) as partial:
            (partial / "unet").mkdir()
            (partial / "unet/weights").write_text("after")
        assert not (best / "unet/weights").is_symlink() and "half" not in contents(best) and not half.exists()
        half.symlink_to(elsewhere)
    assert contents(elsewhere) == {"weights": "another's"}
