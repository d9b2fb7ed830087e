"""Sessions that are cut: the measured pace and the end it leads to, `run.max_hours`, and going on elsewhere."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from memdiff.errors import CheckpointError, ConfigError
from memdiff.recipe.contents import contents_of
from memdiff.recipe.reading import check_recipe, recipe_hash
from memdiff.training import deadline
from memdiff.training.copied_run import bring_run
from memdiff.training.deadline import STARTED, Deadline
from memdiff.training.pace import Pace, clock_time
from memdiff.training.run_folder import RunFolder


class Clock:
    """Says what it was set to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_pace_of_a_first_round_is_its_own() -> None:
    """3 rounds of 100 image-steps. 30 s for the first 10: 3 s each, 290 are left: 870 s. The round takes 500 s: 5 s
    each, 200 left: 1,000 s. Half of the next in 100 s: one and a half rounds of 500 s are left."""
    clock = Clock()
    pace = Pace(3, now=clock)
    assert not pace.known and pace.seconds_left == 0
    pace.begin(1, 100)
    clock.now += 10
    pace.advance(10)
    assert not pace.known  # too early: the first pieces warm up
    clock.now += 20
    assert pace.known and pace.seconds_per_step == 3 and pace.seconds_left == pytest.approx(870)
    clock.now += 470
    pace.advance(90)
    pace.finish()
    assert pace.seconds_per_step == 5 and pace.seconds_left == pytest.approx(1000)
    pace.begin(2, 100)
    clock.now += 100
    pace.advance(50)
    assert pace.seconds_left == pytest.approx(750)


def test_the_end_stays_where_rounds_and_evaluations_are_even() -> None:
    """20 rounds of 10 s, the first 35 s, an evaluation of 7 s before the first round and after every fourth, a
    checkpoint of 3 s after each round. The whole takes 7 + 35 + 19 x 10 + 5 x 7 + 20 x 3 s; the end that is said after
    each round differs from that by the 3 s of the last checkpoint that is not yet over, at most, from the second on."""
    clock = Clock()
    end = clock.now + 7 + 35 + 19 * 10 + 5 * 7 + 20 * 3
    pace = Pace(20, lambda number: number % 4 == 0, clock)
    said = []
    for number in range(21):
        if number:
            pace.begin(number, 50)
            clock.now += 35 if number == 1 else 10
            pace.advance(50)
            pace.finish()
            said.append(clock.now + pace.seconds_left)
        if number % 4 == 0:
            pace.begin_evaluation()
            clock.now += 7
            pace.finish_evaluation()
        clock.now += 3 if number else 0
    assert clock.now == end
    # A round's own checkpoint is not seen yet: after the second round it is missing in all 18, after the third in half.
    assert said[1:] == pytest.approx([end - 3 - 3 * (20 - number) / (number - 1) for number in range(2, 21)])
    assert said[-1] == end - 3


def test_the_end_has_a_day_where_it_is_not_today() -> None:
    assert len(clock_time(0)) == 5 and len(clock_time(30 * 3600)) > 5


@pytest.mark.parametrize(("hours", "near"), [(None, False), (1.0, False), (0.6, True)])
def test_a_run_ends_while_its_checkpoint_still_fits(
    hours: float | None, near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started half an hour ago; a round takes 300 s and a checkpoint 200 s: 1,800 + 300 + 200 + 30 s is within an hour,
    and not within 36 minutes (2,160 s)."""
    clock = Clock()
    monkeypatch.setenv(STARTED, str(time.time() - 1800))
    monkeypatch.setattr(deadline.time, "monotonic", clock)
    limit = Deadline(hours)
    limit.begin_round()
    clock.now += 300
    assert limit.is_near() == near
    with limit.a_save():
        clock.now += 200
    limit.begin_round()
    assert limit.is_near() == near


def recipe_with(prompts: Path, **run: Any) -> Any:
    return check_recipe(
        {
            "model": {"kind": "embedded", "name": "digits_text"},
            "adapter": {"rank": 2},
            "prompts": {"file": str(prompts)},
            "sampler": {"steps": 2, "eta": 1.0},
            "method": {"kind": "reinforce"},
            "reward": [{"kind": "digits", "mode": "probability"}],
            "run": run,
        },
        source="test",
    )


def begun_elsewhere(tmp_path: Path) -> tuple[Path, Any]:
    """A run folder as another machine left it, and its recipe."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "prompts.txt").write_text("zero\nseven\n")
    recipe = recipe_with(there / "prompts.txt")
    run = there / "run"
    (run / "checkpoints" / "round_000002").mkdir(parents=True)
    (run / "checkpoints" / "round_000002" / "MANIFEST.json").write_text("{}")
    (run / "config.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    (run / "contents.json").write_text(json.dumps(contents_of(recipe)))
    (run / "status.json").write_text(json.dumps({"state": "running", "pid": 1}))
    (run / "run.lock").write_text("held")
    return run, recipe


def test_a_copied_run_goes_on_elsewhere(tmp_path: Path) -> None:
    """Its prompts lie at another path here and are the same; other prompts are another run. Nothing is copied twice."""
    run, _ = begun_elsewhere(tmp_path)
    (tmp_path / "prompts.txt").write_text("zero\nseven\n")
    recipe, out = recipe_with(tmp_path / "prompts.txt"), tmp_path / "here"
    assert bring_run(str(run), out) and not bring_run(str(run), out)
    assert (out / "checkpoints" / "round_000002" / "MANIFEST.json").is_file()
    assert not (out / "run.lock").exists() and RunFolder(out).status() == {}
    with RunFolder(out).prepare(recipe, "auto"):
        pass
    (tmp_path / "prompts.txt").write_text("zero\neight\n")
    with pytest.raises(ConfigError, match=r"prompts\.file"):
        RunFolder(out).check_same(recipe, contents_of(recipe))


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    """An empty folder, one that is not there, and a repository that can't be reached; nothing is left behind."""
    (tmp_path / "empty").mkdir()
    for source in (str(tmp_path / "empty"), str(tmp_path / "nowhere"), "hf://nobody/nothing", "hf://no such name"):
        with pytest.raises(CheckpointError, match="--resume-from") as raised:
            bring_run(source, tmp_path / "out")
        assert raised.value.exit_code == 5 and not (tmp_path / "out").exists()


def test_a_limit_is_no_other_run(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("zero\n")
    assert recipe_hash(recipe_with(file, max_hours=8.5)) == recipe_hash(recipe_with(file))
