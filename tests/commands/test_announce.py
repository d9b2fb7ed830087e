"""What a person sees while something takes its time, and how paths are written for who stands in a folder."""

import threading
from pathlib import Path

import pytest

from memdiff.recipe.init import next_commands
from memdiff.runtime import announce
from memdiff.runtime.announce import said_if_slow
from memdiff.runtime.from_here import from_here, shell_word
from memdiff.runtime.units import counted
from memdiff.training import launcher


def test_what_is_slow_is_said_once_and_what_is_quick_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow is what has not ended when the line comes: the block below waits for its own line."""
    lines: list[str] = []
    said = threading.Event()

    def say(text: str) -> None:
        lines.append(text)
        said.set()

    with said_if_slow("quick", say):
        pass
    monkeypatch.setattr(announce, "SECONDS_IN_SILENCE", 0.01)
    with said_if_slow(lambda: "slow", say):
        assert said.wait(timeout=600)
    asked = threading.Event()
    with said_if_slow(asked.set, say):  # nothing to say after all
        assert asked.wait(timeout=600)
    assert lines == ["slow"]


def test_paths_are_as_seen_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only whole folders: neither a neighbour whose name begins alike, nor the same words within another path."""
    here = tmp_path / "mine"
    here.mkdir()
    monkeypatch.chdir(here)
    assert (
        from_here(f"{here}/runs/a holds a run; see ({here}/b), --out={here}/c")
        == "runs/a holds a run; see (b), --out=c"
    )
    for text in (f"{here}", f"{here}/", f"{here}2/x", f"/data{here}/x", f"file:///srv{here}/x", "elsewhere"):
        assert from_here(text) == text
    assert shell_word(here / "my runs/a") == "'my runs/a'" and shell_word(Path("/x/y")) == "/x/y"
    monkeypatch.chdir("/")
    assert from_here(f"{here}/runs") == f"{here}/runs"


def test_counted() -> None:
    assert [counted(number, "rank") for number in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]


def test_what_init_says_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ships trains on a CPU; what fits a card is planned for others, and for a card that is named."""
    monkeypatch.chdir(tmp_path)
    lines = [line.split("   ")[0].strip() for line in next_commands(tmp_path / "a b.yaml", "digits", None, 1)]
    assert lines == ["memdiff train 'a b.yaml' --dry-run", "memdiff train 'a b.yaml'"]
    assert (
        next_commands(Path("a.yaml"), "digits", "l4", 2)[0].split("   ")[0] == "  memdiff plan a.yaml --gpu l4 --gpus 2"
    )
    assert next_commands(Path("a.yaml"), "x/y", None, 1)[0].split("   ")[0] == "  memdiff plan a.yaml --gpu t4 --gpus 1"


def test_gpus_that_are_asked_for_and_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes on the CPU may be what was meant, and may be a driver that is missing."""
    monkeypatch.setattr(launcher, "ranks_use_gpus", lambda: False)
    note = launcher.ranks_without_gpus(4)
    assert note is not None and "--gpus 4 is 4 processes on the CPU" in note
    assert launcher.ranks_without_gpus(None) is launcher.ranks_without_gpus(1) is None
    monkeypatch.setattr(launcher, "ranks_use_gpus", lambda: True)
    assert launcher.ranks_without_gpus(4) is None
