"""What a person sees of a run: lines that fit the terminal, no figure twice, and at the end what to open and type."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from memdiff.evaluation.show import last_lines as last_lines_of_eval
from memdiff.memory.knobs import MemoryConfig, resolved, word
from memdiff.training.command import last_lines
from memdiff.training.progress import LONGEST_LINE, RunProgress, evaluation_summary, lines_of, round_summary
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


ROUND = {
    "reward_mean": 0.5, "images_in_round": 64, "seconds_rollout": 3.0, "seconds_reward": 1.0, "seconds_train": 4.0,
    "peak_bytes": 13 * 2**30, "grad_norm": 0.25, "skipped": 0,
}  # fmt: skip


@pytest.mark.parametrize("count", [2, 5, 40])
def test_a_rounds_line_fits_a_log_however_many_parts_there_are(count: int) -> None:
    """64 images in 8 s are 8 a second. What is left out is counted; what is no part stays, the end's time last."""
    row = ROUND | {f"reward/part_{number}": number / 7 for number in range(count)}
    items = round_summary(row, ["round    9/100"], ["ends about 16:40"])
    kept = [item for item in items if item.startswith("part_")]
    assert len("  ".join(items)) <= LONGEST_LINE and items[1] == "reward 0.500"
    fixed = ["8.00 images/s", "peak 13.00 GiB", "grad norm 0.25", "ends about 16:40"]
    assert items[-4:] == fixed and kept == [f"part_{number} {number / 7:.3f}" for number in range(len(kept))]
    assert (f"(+{count - len(kept)} more)" in items) == (len(kept) < count)
    assert count == 40 or len("  ".join([*items, f"part_{len(kept)} 0.000"])) > LONGEST_LINE or len(kept) == count


def test_the_only_part_is_not_said_beside_the_total() -> None:
    """It is the same number, unless it has a weight."""
    row = ROUND | {"peak_bytes": None, "reward/dark": 0.5}
    assert round_summary(row) == ["reward 0.500", "8.00 images/s", "grad norm 0.25"]
    assert "dark -0.500" in round_summary(row | {"reward/dark": -0.5})
    assert evaluation_summary({"evaluate/reward_mean": 0.5, "evaluate/reward/dark": 0.5}) == ["reward 0.500"]


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
    assert last_lines(folder, 0, terminal=True) == ["runs/my run"]
    (folder.path / "report.html").write_text("")
    assert last_lines(folder, 0, terminal=True) == [
        "open 'runs/my run/report.html'", "next: memdiff sample 'runs/my run' --num-images 16"
    ]  # fmt: skip
    assert last_lines(folder, 4, terminal=True) == last_lines(folder, 4, terminal=False) == ["runs/my run"]
    said, where = last_lines(folder, 0, terminal=False)
    assert said == "complete: report.html and model/ lie in this folder" and where == "runs/my run"


def test_the_last_lines_of_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page; of a run among the sources, what would go to the hub. A program gets the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/config.yaml").write_text("")
    base, run = SimpleNamespace(source="digits"), SimpleNamespace(source="runs/a")
    folder, both, alone = Path("evaluation"), SimpleNamespace(subjects=[base, run]), SimpleNamespace(subjects=[base])
    lines = last_lines_of_eval(folder, cast(Any, both), terminal=True)
    assert lines[0] == "open evaluation/eval.html" and lines[1].startswith("next: memdiff push runs/a you/NAME ")
    assert last_lines_of_eval(folder, cast(Any, alone), terminal=True) == lines[:1]
    assert last_lines_of_eval(folder, cast(Any, both), terminal=False) == ["evaluation"]


def test_a_plans_settings_can_be_pasted_into_a_recipe() -> None:
    """Names and words are those of the section `memory`."""
    knobs = resolved(MemoryConfig(), micro_batch=14, offload_optimizer=True, trajectory="host").model_dump()
    shown = yaml.safe_load("memory: {" + ", ".join(f"{name}: {word(value)}" for name, value in knobs.items()) + "}")
    assert shown["memory"] == knobs
    MemoryConfig(**shown["memory"])


def test_a_notebook_gets_lines_and_no_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a notebook's kernel, which has no terminal, rich would draw widgets: what is written there is plain text, a
    line a round, and within a round of three minutes two lines."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    row = {"reward_mean": 1.5, "images_in_round": 4, "seconds_rollout": 1.0, "seconds_reward": 1.0,
           "seconds_train": 2.0, "peak_bytes": None, "grad_norm": 0.1, "skipped": 0}  # fmt: skip
    now = [0.0]
    with RunProgress(rounds=1, shown=True) as progress:
        progress._now = progress._pace._now = lambda: now[0]
        progress.say("begin")
        progress.begin_round(1, 6)
        progress._end_said = True  # the estimate's own line
        for now[0] in (30, 60, 90, 119, 121, 180):
            progress.advance(1)
        progress.done(1, row)
    said = capsys.readouterr().out.splitlines()
    assert said[:-1] == ["begin", "    round 1: 33 % of its steps", "    round 1: 83 % of its steps"]
    assert said[-1].startswith("round 1/1  reward 1.500") and "\x1b" not in "".join(said)
