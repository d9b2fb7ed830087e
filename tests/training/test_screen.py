"""What a person sees of a run: lines that fit the terminal, no figure twice, and at the end what to open and type."""

from pathlib import Path

import pytest
import yaml

from memdiff.memory.knobs import MemoryConfig, resolved, word
from memdiff.training.command import last_lines
from memdiff.training.progress import evaluation_summary, lines_of
from memdiff.training.run_folder import RunFolder

EVALUATED = {
    "evaluate/reward_mean": 1.23456, "evaluate/images": 64.0, "evaluate/reward/seven": 0.25,
    "evaluate/share/seven": 0.25, "evaluate/reward/ink": -0.5, "evaluate/reward/judge": None,
    "evaluate/reward_std/judge": 0.1, "evaluate/diversity_pixel": 0.3, "evaluate/best": True, "round": 5,
}  # fmt: skip


def test_an_evaluation_names_each_part_once() -> None:
    """A part that is a share has one number; counts, deviations and flags stay in metrics.jsonl."""
    assert evaluation_summary(EVALUATED) == [
        "reward 1.235", "seven 0.250", "ink -0.500", "judge n/a", "diversity_pixel 0.300"
    ]  # fmt: skip


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lines_are_no_wider_than_the_terminal(width: int) -> None:
    """No item is cut or lost; a line is longer only where a single item is."""
    items = ["evaluation at round 5", *(f"{digit} 0.0{digit}0" for digit in range(10)), "x" * 30]
    lines = lines_of(items, width)
    assert "  ".join(line.strip() for line in lines).split("  ") == items
    longest = max(map(len, items)) + 4
    assert all(len(line) <= max(width, longest if len(line.split("  ")[-1]) + 4 > width else width) for line in lines)
    assert len(lines_of(items, 1000)) == 1


def test_the_last_lines_say_what_to_open_and_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, of a run that is complete; a program that reads them gets the folder."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "runs/my run")
    folder.path.mkdir(parents=True)
    assert last_lines(folder, 0, terminal=True) == [str(folder.path)]
    (folder.path / "report.html").write_text("")
    assert last_lines(folder, 0, terminal=True) == [
        "open 'runs/my run/report.html'", "next: memdiff sample 'runs/my run' --num-images 16"
    ]  # fmt: skip
    assert last_lines(folder, 0, terminal=False) == last_lines(folder, 4, terminal=True) == [str(folder.path)]


def test_a_plans_settings_can_be_pasted_into_a_recipe() -> None:
    """Names and words are those of the section `memory`."""
    knobs = resolved(MemoryConfig(), micro_batch=14, offload_optimizer=True, trajectory="host").model_dump()
    shown = yaml.safe_load("memory: {" + ", ".join(f"{name}: {word(value)}" for name, value in knobs.items()) + "}")
    assert shown["memory"] == knobs
    MemoryConfig(**shown["memory"])
