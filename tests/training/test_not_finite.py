"""Numbers that are not finite: on one rank alone, in an update that is skipped, in what is written and shown."""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.engine.update import Update
from memdiff.errors import ConfigError, NumericError, RewardError
from memdiff.methods.config import DraftConfig, ReinforceConfig
from memdiff.methods.draft import Draft
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.reinforce import Reinforce
from memdiff.methods.reinforce_one_pass import ReinforceOnePass
from memdiff.recipe.reading import check_recipe
from memdiff.reporting.diagnostics import step_norm_panels
from memdiff.rewards.guards import alarms, watched
from memdiff.rewards.guards_config import GuardsConfig
from memdiff.rewards.non_finite import clamped, settle
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces
from memdiff.training.metrics import plain_row, round_row
from memdiff.training.progress import round_summary
from memdiff.training.run_state import RunState
from tests.helpers.one_graph import ALONE, Waves, knobs, make, waves
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
        line = "  ".join(round_summary(row))
        assert f"grad norm {'n/a' if norm is None else '2'}" in line
        assert ("skipped" in line) == (count > 0) and ("2 updates skipped" in line) == (count == 2)


def test_a_row_without_finite_numbers_is_shown_written_and_guarded() -> None:
    """Scores whose mean overflows: null in JSON, n/a in the line, no alarm and nothing to hold later rows against."""
    row = row_of([Update(math.nan, 1.0, True, 1e-3)], second=3.4e38) | {"evaluate/reward_mean": math.nan}
    row = plain_row(row | {"reward_mean": math.inf, "reward/wave0": -math.inf})
    assert json.loads(json.dumps(row, allow_nan=False))["reward_mean"] is None
    assert "reward n/a  wave0 n/a" in "  ".join(round_summary(row))
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


class Broken:
    """What `Waves` gives, but for the values of some of a round's images."""

    differentiable = True
    networks = ()

    def __init__(self, values: dict[int, float]) -> None:
        self.values, self.waves = values, Waves()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Any) -> torch.Tensor:
        scores_B = self.waves(images_BCHW, prompts).clone()
        for image, value in self.values.items():
            scores_B[image] = value
        return scores_B


IMAGES = 6
FORMS = {
    "whiten": (Reinforce, {}),
    "leave one out, two updates": (Reinforce, {"advantage": "leave_one_out", "inner_updates": 2}),
    "kl": (Reinforce, {"kl_weight": 0.3}),
    "one pass": (ReinforceOnePass, {}),
}


def treated(form: str, how: Any, values: dict[int, float], chosen: Sequence[int] = range(IMAGES)) -> Any:
    """Gradient sums and the experience of a round of `chosen` images; `values` by their places in it."""
    policy = tiny_policy(steps=3, keep_base=form == "kl")
    kind, more = FORMS[form]
    reward = WeightedReward([WeightedPart("mine", Broken(values), non_finite=how)], device=CPU)
    method = make(kind, ReinforceConfig(kind="reinforce", **more), policy, reward, micro_batch=3)
    noise = Chosen(Noise(seed=1, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape), chosen)
    count = len(chosen)
    experience = method.collect(policy, Round(Batch(range(count), [""] * count, count, cast(Any, noise)), Clock(CPU)))
    for part in method.updates(experience):
        method.differentiate(policy, part)
    return torch.cat([total.flatten() for total in method.pieces.gradients.sums]), experience


class Chosen:
    """The noise of some of a round's images, as if they were all."""

    def __init__(self, noise: Noise, chosen: Sequence[int]) -> None:
        self.noise, self.chosen, self.round = noise, chosen, noise.round

    def initial(self, images: Sequence[int]) -> torch.Tensor:
        return self.noise.initial([self.chosen[image] for image in images])

    def step(self, images: Sequence[int], *more: Any) -> torch.Tensor:
        return self.noise.step([self.chosen[image] for image in images], *more)


@pytest.mark.parametrize("form", FORMS)
def test_images_that_are_dropped_were_never_there(form: str) -> None:
    """The gradient is that of the round without them, divided by those that are left."""
    whole, experience = treated(form, "drop", {1: math.nan, 4: -math.inf})
    without, alone = treated(form, "error", {}, [0, 2, 3, 5])
    assert float(without.abs().max()) > 0
    torch.testing.assert_close(whole, without, rtol=1e-6, atol=1e-6 * float(without.abs().max()))
    assert torch.equal(experience.rewards_N, alone.rewards_N) and experience.metrics["rewards_drop"] == 2


def test_scores_that_are_clamped_are_the_rounds_own() -> None:
    """The largest, the smallest, and for NaN the one that counts least: under a negative weight the largest."""
    clean, reference = treated("whiten", "error", {})
    scores = reference.raw_PN[0].tolist()
    rest = [scores[image] for image in (0, 2, 5)]
    gradient, experience = treated("whiten", "clamp", {1: math.nan, 3: math.inf, 4: -math.inf})
    expected = [scores[0], min(rest), scores[2], max(rest), min(rest), scores[5]]
    assert experience.raw_PN[0].tolist() == expected and experience.metrics["rewards_clamp"] == 3
    assert bool(gradient.isfinite().all()) and not torch.equal(gradient, clean)
    away = WeightedPart("away", Waves(), weight=-1.0, non_finite="clamp")
    assert clamped(torch.tensor([1.0, math.nan, 3.0]), away).tolist() == [1.0, 3.0, 3.0]


def test_a_round_without_a_finite_score_ends_the_run() -> None:
    """Whatever is to be done with it; and an error names part, image and prompt."""
    nothing = dict.fromkeys(range(IMAGES), math.nan)
    for how in ("drop", "clamp"):
        with pytest.raises(RewardError, match="mine"):
            treated("whiten", how, nothing)
    part = WeightedPart("mine", Waves())
    with pytest.raises(RewardError, match="reward mine gave nan for image 1 of the round, prompt 'a cat'"):
        settle(torch.tensor([[1.0, math.nan]]), [part], ["a dog", "a cat"])


def test_equal_rewards_give_no_gradient() -> None:
    """Exactly zero, whatever they are."""
    gradient, _ = treated("whiten", "error", dict.fromkeys(range(IMAGES), 0.3))
    assert not gradient.any()


def test_what_has_no_gradient_is_not_dropped_from_it() -> None:
    """Told with the recipe."""
    part = {"kind": "digits", "mode": "probability"}
    for method, how, words in (
        ({"kind": "draft"}, "drop", "goes with method.kind: reinforce"),
        ({"kind": "reinforce", "baseline": "predicted_image"}, "drop", "goes with method.baseline: none"),
    ):
        raw = {"model": {"kind": "embedded"}, "method": method, "reward": [part | {"non_finite": how}]}
        with pytest.raises(ConfigError, match=words):
            check_recipe(raw, source="recipe")


def test_a_piece_names_its_first_gradient_that_is_not_finite() -> None:
    """By the engine's name for the parameter; the input is named where only its gradient is not finite."""
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    gradients = Gradients([first, second], names=["up.first", "up.second"])
    x = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    y, pull = Pieces(gradients).vjp(lambda x: first * x + second * x.detach() / x.detach(), x)
    with pytest.raises(NumericError, match=r"the gradient of up\.second is not finite at any loss scale"):
        pull(torch.ones_like(y))
    _, pull = Pieces(gradients).vjp(lambda x: first * x.sqrt(), x)
    with pytest.raises(NumericError, match=r"the gradient of a piece's input is not finite"):
        pull(torch.ones_like(y))
