"""Numbers that are not finite: on one rank alone, in an update that is skipped, in what is written and shown."""

import json
import math
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.engine.update import Update
from memdiff.errors import RewardError
from memdiff.methods.config import DraftConfig, ReinforceConfig
from memdiff.methods.draft import Draft
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.reinforce import Reinforce
from memdiff.reporting.diagnostics import step_norm_panels
from memdiff.rewards.guards import alarms, watched
from memdiff.rewards.guards_config import GuardsConfig
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.vjp import Gradients, Pieces
from memdiff.training.metrics import plain_row, round_row
from memdiff.training.progress import summary
from memdiff.training.run_state import RunState
from tests.helpers.one_graph import ALONE, knobs, waves
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import CPU, tiny_policy


@cache
def over_two_ranks() -> list[dict[str, Any]]:
    """What `tests.workers.not_finite` found on each of two gloo ranks."""
    return run_ranks("not_finite", 2, {}, Path(mkdtemp()))


def test_a_maximum_over_ranks_keeps_nan() -> None:
    """[1, 2, -3] on rank 0 and [2, ?, -3] on rank 1: as torch.maximum, the same on both; whole numbers as they were."""
    for rank in over_two_ranks():
        assert rank["largest"] == {
            "nan": "[2.0, nan, -3.0]",
            "inf": "[2.0, inf, -3.0]",
            "-inf": "[2.0, 2.0, -3.0]",
            "whole": "[1, 0]",
        }


def test_a_gradient_that_is_not_finite_on_one_rank_ends_all() -> None:
    """NumericError, exit code 4, on both ranks with the same words: the first such parameter and the rank."""
    for rank in over_two_ranks():
        for name, value in (("nan", "nan"), ("inf", "inf"), ("-inf", "inf")):
            assert rank["refusals"][name].startswith(f"the summed gradient of second is {value} on rank 1; ")
        # 3e38 on each of two ranks: their sum is infinite in fp32, DeepSpeed skips, and the weights stay.
        assert rank["refusals"]["skipped"] == "True 0 [1.0, 1.0, 1.0]"


def row_of(updates: list[Update], **rewards: float) -> dict[str, Any]:
    """A round's row of two images."""
    reward = waves()
    raw_PN = torch.tensor([[1.0, rewards.get("second", 2.0)]])
    parts: Any = SimpleNamespace(
        ranks=ALONE, engine=SimpleNamespace(updates=1), reward=reward, pieces=SimpleNamespace(redone=0)
    )
    outcome: Any = SimpleNamespace(rewards_N=reward.combine(raw_PN, {}), raw_PN=raw_PN, metrics={})
    clock = Clock(CPU, {"rollout": 1.0, "reward": 0.5, "train": 0.5})
    return round_row(parts, RunState(round=1, images=2), outcome, updates, {}, clock)


def test_every_skipped_update_of_a_round_is_counted() -> None:
    """The last update's norm, and how many were skipped, a whole number."""
    skipped, applied = Update(math.inf, 1.0, True, 1e-3), Update(2.0, 1.0, False, 1e-3)
    for updates, count, norm in (
        ([applied], 0, 2.0),
        ([skipped, applied], 1, 2.0),
        ([skipped, skipped], 2, None),
    ):
        row = row_of(updates)
        assert (row["skipped"], row["grad_norm"]) == (count, norm) and type(row["skipped"]) is int
        line = summary(row)
        assert f"grad norm {'n/a' if norm is None else '2'}" in line
        assert ("skipped" in line) == (count > 0) and ("2 updates skipped" in line) == (count == 2)


def test_a_row_without_finite_numbers_is_shown_written_and_guarded() -> None:
    """Scores whose mean overflows: null in JSON, n/a in the line, no alarm and nothing to hold later rows against."""
    row = row_of([Update(math.nan, 1.0, True, 1e-3)], second=3.4e38) | {"evaluate/reward_mean": math.nan}
    row = plain_row(row | {"reward_mean": math.inf, "reward/wave0": -math.inf})
    assert json.loads(json.dumps(row, allow_nan=False))["reward_mean"] is None
    assert "reward n/a  wave0 n/a" in summary(row)
    assert watched(row, ["wave0"]) == {}
    assert alarms(row, {"evaluate/reward_mean": 1.0}, GuardsConfig(), ["wave0"]) == []


def test_the_best_evaluation_is_a_number() -> None:
    """One that is not finite is never the best, and does not keep later ones from it."""
    run_state = RunState()
    assert not run_state.is_best(math.nan) and not run_state.is_best(math.inf) and run_state.is_best(-5.0)
    run_state.best_reward = 1.0
    assert run_state.is_best(1.5) and not run_state.is_best(1.0) and not run_state.is_best(math.inf)
    run_state.best_reward = math.nan
    assert run_state.is_best(-5.0)


def test_a_round_without_norms_is_left_out_of_the_plot() -> None:
    """First, middle and last of those that have some; none at all: no plot."""
    empty = {"round": 1, "step_gradient_norm": [None, None]}
    rows = [empty, *({"round": number, "step_gradient_norm": [1.0, None]} for number in (2, 3)), empty | {"round": 4}]
    panel = step_norm_panels(rows)[0]
    assert [name for _, name in panel.legend] == ["round 2", "round 3"]
    assert step_norm_panels([empty]) == []


class NotEverywhere:
    """NaN from the call of number `after` on."""

    differentiable = True
    networks = ()

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, images_BCHW: torch.Tensor, prompts: Any) -> torch.Tensor:
        self.left -= 1
        return images_BCHW.flatten(1).mean(1) * (math.nan if self.left < 0 else 1.0)


def refused(kind: Any, config: Any, *, after: int, normalised: bool = False) -> str:
    policy = tiny_policy(steps=3)
    part = WeightedPart("mine", NotEverywhere(after), normalised=normalised)
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    method = kind(config, WeightedReward([part], device=CPU), pieces, ALONE, knobs(2))
    noise = Noise(seed=1, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape)
    with pytest.raises(RewardError) as raised:
        method.collect(policy, Round(Batch(range(2), [""] * 2, 2, noise), Clock(CPU)))
    return str(raised.value)


def test_a_reward_is_refused_wherever_it_is_asked() -> None:
    """Of predicted images, and of the images that a normalised part's first statistics come from."""
    by_step = ReinforceConfig(kind="reinforce", baseline="predicted_image")
    assert "reward total of what step 0 predicts gave nan for image 0" in refused(Reinforce, by_step, after=1)
    draft = DraftConfig(kind="draft")
    assert "reward mine gave nan for image 0" in refused(Draft, draft, after=0, normalised=True)
