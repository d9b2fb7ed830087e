"""Short rounds: cached between starts, blank where another has been decoded and scored; operators from a cache."""

import dataclasses
import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from memdiff.planner import rounds, search
from memdiff.planner.fake_tensors import GPU, fake_gpu
from memdiff.planner.libraries import hidden
from memdiff.planner.measured import Measured
from memdiff.planner.piece_costs import Curve, PieceCosts
from memdiff.planner.plan import make_plan
from memdiff.planner.processes import next_of, side_by_side
from memdiff.planner.rank_round import rank_round_of
from memdiff.planner.round_cache import RoundCache, users_cache
from memdiff.planner.rounds import Measuring, ShortRound, measure_rounds, short_rounds
from memdiff.planner.warm_up import main as warm_up_of
from memdiff.recipe.reading import check_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.units import GIB

SCORE = {"kind": "digits", "mode": "log_probability"}
TEXT = {
    "model": {"kind": "embedded", "name": "digits_text", "precision": "fp16"},
    "adapter": {"rank": 4},
    "prompts": ["a thin seven"],
}
PIXELS = {"model": {"kind": "embedded", "name": "digits", "precision": "fp16"}}
METHODS: dict[str, dict[str, Any]] = {
    "reinforce": {**PIXELS, "sampler": {"steps": 3, "eta": 1.0}, "method": {"kind": "reinforce"}},
    "reinforce on texts": {
        **TEXT, "sampler": {"steps": 3, "eta": 1.0, "guidance": 3.0}, "method": {"kind": "reinforce"},
    },
    "draft": {**TEXT, "sampler": {"steps": 3, "guidance": 3.0}, "method": {"kind": "draft", "last_steps": "all"}},
    "draft of new noisings": {
        **TEXT, "sampler": {"steps": 3}, "method": {"kind": "draft", "last_steps": 1, "noise_samples": 2},
    },
    "refl": {**TEXT, "sampler": {"steps": 3}, "method": {"kind": "refl", "first_step": 1, "last_step": 2}},
    "draft, trained whole": {**PIXELS, "sampler": {"steps": 3}, "method": {"kind": "draft", "last_steps": "all"}},
}  # fmt: skip


def recipe_of(name: str, **sections: Any) -> Recipe:
    recipe = {**METHODS[name], "reward": [SCORE], "run": {"images_per_round": 4}, "evaluate": {"images": 4}, **sections}
    return check_recipe(recipe, source="test")


@pytest.mark.parametrize("name", METHODS)
def test_a_blank_round_is_completed_to_a_whole_one(name: str) -> None:
    """Blocks recomputed, measured with a decoder and rewards and without, completed by the round of the first way: the
    same functions of rows, FLOPs and sizes. While a policy gradient trains, one number an image is less there."""
    recipe = recipe_of(name)
    rank_round = rank_round_of(recipe, ranks=1, precision="fp16")
    every = short_rounds(recipe, rank_round)
    first, blank = every[0], every[-1]
    assert blank.blank and not first.blank
    first = ShortRound(first.recompute, blank.images)
    ask = [first, blank, ShortRound(blank.recompute, blank.images)]
    first_way, without, whole = measure_rounds(recipe, rank_round, "fp16", ask, Measuring())
    completed, measured = (PieceCosts.of([one]) for one in (without.with_images_of(first_way), whole))
    ours, theirs = (costs.transient["train"]["reward"].at(blank.images) for costs in (completed, measured))
    assert 0 <= theirs - ours <= 4 * blank.images
    transient = {
        **measured.transient,
        "train": {**measured.transient["train"], "reward": Curve(((blank.images, ours),))},
    }
    assert completed == dataclasses.replace(measured, transient=transient)


def test_a_cached_round_is_read_and_what_is_damaged_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget is in no key; what is cut short, changed, or of another time or recipe is measured anew, the same."""
    recipe = recipe_of("draft")
    counted: list[ShortRound] = []
    measure_one = rounds._measured

    def count(*task: Any) -> Measured:
        counted.append(task[-1])
        return measure_one(*task)

    monkeypatch.setattr(rounds, "_measured", count)

    def plan(recipe: Recipe, budget: float) -> tuple[dict[str, Any], int]:
        counted.clear()
        made = make_plan(
            recipe, budget_bytes=int(budget * GIB), measuring=Measuring(cache=RoundCache(recipe, tmp_path))
        )
        return made.to_json(), len(counted)

    first, measured = plan(recipe, 10)
    assert measured == 3 and len(list(tmp_path.iterdir())) == measured
    assert plan(recipe, 10) == (first, 0)
    assert plan(recipe.model_copy(update={"run": recipe.run.model_copy(update={"rounds": 7})}), 10)[1] == 0
    files = sorted(tmp_path.iterdir())
    files[0].write_text(files[0].read_text()[:50])
    stored = json.loads(files[1].read_text())
    files[1].write_text(json.dumps({**stored, "measured": {**stored["measured"], "kept_bytes": 1}}))
    files[2].write_bytes(b"\xff\x00")
    assert plan(recipe, 10) == (first, 3) and plan(recipe, 10) == (first, 0)
    assert plan(recipe_of("draft", optimizer={"bits": 8}), 10)[1] == 0
    assert plan(recipe_of("draft", adapter={"rank": 5}), 10)[1] == 3
    monkeypatch.setattr("memdiff.planner.round_cache._sources", lambda: "other sources")
    assert plan(recipe, 10)[1] == 3


def test_what_fits_nowhere_takes_little_more_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.01 GiB: nothing fits, and it is said from the cache, each setting looked at as often as there are answers to
    give. A million images a round have no more sizes of pieces than some hundred."""
    looked_at: list[int] = []
    estimate = search.estimate_round

    def count(*arguments: Any) -> Any:
        looked_at.append(1)
        return estimate(*arguments)

    monkeypatch.setattr(search, "estimate_round", count)
    recipe = recipe_of("draft")
    cache = RoundCache(recipe, tmp_path)
    make_plan(recipe, budget_bytes=4 * GIB, measuring=Measuring(cache=cache))
    settings = len(looked_at)
    progress_calls: list[tuple[int, int]] = []
    measuring = Measuring(cache=cache, progress=lambda done, total: progress_calls.append((done, total)))
    plan = make_plan(recipe, budget_bytes=GIB // 100, measuring=measuring)
    assert not plan.fits and set(progress_calls) == {(3, 3)}
    assert len(looked_at) - settings <= 5 * settings
    assert len(list(search._sizes(10**6))) == len(list(search._sizes(512))) < 50


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recipe = recipe_of("draft")
    cache = RoundCache(recipe, tmp_path / "file" / "below")
    plan = make_plan(recipe, budget_bytes=4 * GIB, measuring=Measuring(cache=cache))
    assert plan.fits and cache.read({}) is None


def test_where_the_round_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMDIFF_PLAN_CACHE", "")
    assert users_cache() is None
    monkeypatch.setenv("MEMDIFF_PLAN_CACHE", str(tmp_path))
    assert users_cache() == tmp_path
    monkeypatch.delenv("MEMDIFF_PLAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert users_cache() == tmp_path / "memdiff" / "rounds"


def test_a_warm_cache_holds_what_a_run_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before two ranks start, in the process that is started for it; their plan measures nothing but its own choice."""
    monkeypatch.setenv("MEMDIFF_PLAN_CACHE", str(tmp_path))
    monkeypatch.setattr("memdiff.planner.warm_up.processes_here", lambda: 1)  # forks are another test's
    recipe = recipe_of("draft")
    warm_up_of(json.dumps({"recipe": recipe.model_dump(mode="json"), "ranks": 2}))
    progress_calls: list[tuple[int, int]] = []
    measuring = Measuring(
        cache=RoundCache(recipe, tmp_path), progress=lambda done, total: progress_calls.append((done, total))
    )
    make_plan(recipe, budget_bytes=4 * GIB, ranks=2, measuring=measuring)
    assert set(progress_calls) == {(3, 3)}


def double(number: int) -> int:
    if number < 0:
        raise ValueError("a negative number")
    return 2 * number


def test_forks_give_what_one_process_gives() -> None:
    done_calls: list[None] = []
    tasks = [(number,) for number in range(5)]
    assert side_by_side(double, tasks, 2, done=lambda: done_calls.append(None)) == [0, 2, 4, 6, 8]
    assert len(done_calls) == 5
    with pytest.raises(ValueError, match="negative"):
        side_by_side(double, [(1,), (-1,)], 2, done=lambda: None)


def test_a_fork_stays_in_its_lane() -> None:
    """As long as there are tasks in it; then an untouched lane, then what is left of the other's."""
    assert side_by_side(double, [(1,), (2,), (3,)], 2, lanes=["a", "b", "a"], done=lambda: None) == [2, 4, 6]
    lanes = ["a", "b"] * 3
    assert next_of([2, 3, 4, 5], lanes, {0: "a", 1: "b"}, 0) == 2
    assert next_of([2, 3, 4, 5], lanes, {0: "a", 1: "b"}, 1) == 3
    assert next_of([3, 5], lanes, {0: "a", 1: "b"}, 0) == 3
    assert next_of([0, 1, 2], ["a", "b", "a"], {1: "a"}, 0) == 1


def test_hidden_packages_are_hidden_for_a_while() -> None:
    """Inside they are not installed; what is loaded already stays, and afterwards all can be imported again."""
    with hidden(("wave", "json")):
        assert find_spec("wave") is None and find_spec("json") is not None
        with pytest.raises(ModuleNotFoundError):
            import_module("wave")
    assert import_module("wave").Error
    sys.modules.pop("wave")


def test_a_cached_operator_returns_what_it_returned() -> None:
    """The second time from the cache: metadata, views' storages, arguments changed in place and results left out."""

    def run() -> list[Any]:
        x = torch.empty(4, 6, device=GPU)
        view = x.transpose(0, 1)[1:, ::2]
        changed = x.add_(1)
        parts = x.split(2)
        none = torch.ops.aten.native_group_norm_backward(
            torch.empty(1, 4, 2, 2, device=GPU), torch.empty(1, 4, 2, 2, device=GPU), torch.empty(1, 2, device=GPU),
            torch.empty(1, 2, device=GPU), None, 1, 4, 4, 2, [True, False, False],
        )  # fmt: skip
        mixed = (x @ torch.empty(6, 3, device=GPU)).half()
        assert changed is x
        assert all(part.untyped_storage()._cdata == x.untyped_storage()._cdata for part in (view, *parts))
        assert none[1] is None and none[2] is None
        tensors = (x, view, *parts, none[0], mixed)
        return [
            (t.shape, t.stride(), t.storage_offset(), t.dtype, t.device, t.untyped_storage().nbytes()) for t in tensors
        ]

    with fake_gpu():
        assert run() == run()
    with fake_gpu():
        first = run()
    with fake_gpu():
        assert run() == first
