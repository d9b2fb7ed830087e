"""DRaFT's bounded loss, its low-variance form, its distance to the base, what it refuses, and that it learns."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.engine.config import OptimizerConfig
from memdiff.errors import ConfigError, RewardError
from memdiff.methods.config import DraftConfig
from memdiff.methods.draft import Draft
from memdiff.methods.reward_gradient import even_size
from memdiff.models.config import AdapterConfig
from memdiff.rewards.normalise import EPSILON
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.vjp import Pieces
from tests.helpers.one_graph import (
    ALONE,
    Waves,
    chain,
    distance,
    flat_gradient,
    gradient_of,
    knobs,
    make,
    round_of,
    total,
    truth_of,
    waves,
)
from tests.helpers.reference_engine import ReferenceEngine
from tests.helpers.tiny import CPU, tiny_policy

IMAGES = 4


def draft(**config: Any) -> DraftConfig:
    return DraftConfig.model_validate({"kind": "draft", **config})


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.5)])
def test_images_above_the_target_are_left_alone(weights: tuple[float, ...]) -> None:
    """loss = scale max(target - r, 0), the target between the rewards: against one graph; above all: plain ascent."""
    policy = tiny_policy(steps=3)
    this_round, reward = round_of(policy, IMAGES), waves(*weights)
    with torch.no_grad():
        rewards = total(reward, policy.decode(chain(policy, this_round, [3] * IMAGES)), this_round.batch.prompts)
    target = float(rewards.median()) + 1e-3
    got, metrics = gradient_of(
        make(Draft, draft(last_steps=2, target=target, scale=0.1), policy, reward), policy, this_round
    )
    truth = truth_of(policy, this_round, [1] * IMAGES, reward, target=target, scale=0.1)
    assert distance(got, truth) <= 1e-5
    assert float(metrics["loss"]) == pytest.approx(0.1 * float(torch.relu(target - rewards).mean()), rel=1e-4)
    plain, _ = gradient_of(make(Draft, draft(last_steps=2), policy, reward), policy, this_round)
    far, _ = gradient_of(make(Draft, draft(last_steps=2, target=1e4), policy, reward), policy, this_round)
    assert distance(far, plain) <= 1e-6 and distance(got, plain) > 0.01
    near, _ = gradient_of(make(Draft, draft(last_steps=2, target=-1e4), policy, reward), policy, this_round)
    assert float(near.abs().max()) == 0


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("samples", [1, 3])
def test_low_variance_gradient_by_hand(samples: int, eta: float) -> None:
    """x_0 without a graph, noised n times to the last timestep, one step each, gradients averaged."""
    policy = tiny_policy(steps=5, eta=eta, clip=True)
    this_round = round_of(policy, IMAGES)
    algorithm = make(Draft, draft(noise_samples=samples), policy, micro_batch=2)
    got, metrics = gradient_of(algorithm, policy, this_round)
    batch, ab_t = this_round.batch, policy.schedule.alpha_bar_t[-1]
    with torch.no_grad():
        x_0 = chain(policy, this_round, [5] * IMAGES)
    new = Noise(seed=batch.noise.seed, stream=Stream.RENOISE, round_number=batch.noise.round, shape=policy.shape)
    rewards = []
    for sample in range(samples):
        x_t = math.sqrt(ab_t) * x_0 + math.sqrt(1 - ab_t) * new.step(batch.images, sample)
        rewards.append(total(waves(), policy.decode(policy.mean(x_t, [4] * IMAGES)), batch.prompts))
    assert policy.schedule.sigma[-1] == 0  # so the step is its mean
    truth = flat_gradient(-torch.stack(rewards).mean(), policy)
    assert distance(got, truth) <= 1e-5
    assert metrics["reward_queries"] == samples * IMAGES
    assert float(metrics["loss"]) == pytest.approx(-float(torch.stack(rewards).detach().mean()), rel=1e-4)


def test_more_noise_samples_lower_the_variance() -> None:
    """Spread of the gradient over rounds of one image: n = 8 is below n = 1."""
    policy = tiny_policy(steps=5)

    def spread(samples: int) -> float:
        algorithm = make(Draft, draft(noise_samples=samples), policy)
        gradients = torch.stack(
            [gradient_of(algorithm, policy, round_of(policy, 1, number=1))[0]]
            + [_with_new_seed(algorithm, policy, seed) for seed in range(5)]
        )
        return float(gradients.std(dim=0).norm())

    def _with_new_seed(algorithm: Any, policy: Any, seed: int) -> torch.Tensor:
        """The same x_0, other noise to go back."""
        this_round = round_of(policy, 1, number=1)
        fixed = this_round.batch.noise

        class Reseeded(Noise):
            def initial(self, images: Sequence[int]) -> torch.Tensor:
                return fixed.initial(images)

            def step(self, images: Sequence[int], step: int) -> torch.Tensor:
                return fixed.step(images, step)

        batch = this_round.batch.__class__(
            this_round.batch.images, this_round.batch.prompts, 1,
            Reseeded(seed=100 + seed, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape),
        )  # fmt: skip
        return gradient_of(algorithm, policy, this_round.__class__(batch, this_round.clock))[0]

    assert spread(8) < 0.75 * spread(1)


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2)])
def test_distance_to_the_base(adapter: AdapterConfig | None) -> None:
    """b/N sum_i sum_k mean (prediction - base prediction)^2 at the sampled states, added to -r: by hand."""
    policy = tiny_policy(steps=3, adapter=adapter, keep_base=adapter is None)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    this_round = round_of(policy, IMAGES)
    got, metrics = gradient_of(
        make(Draft, draft(last_steps=2, base_distance=0.8), policy, micro_batch=3, kept_steps=1), policy, this_round
    )
    loss, distances = torch.zeros(()), []
    for step in (1, 2):
        with torch.no_grad():
            x = chain(policy, this_round, [3] * IMAGES, until=step)
            with policy.base():
                base = policy.predict(x, [step] * IMAGES)
        square = (policy.predict(x, [step] * IMAGES) - base).square().mean(dim=(1, 2, 3))
        distances.append(float(square.detach().mean()))
        loss = loss + 0.8 * square.sum() / IMAGES
    truth = truth_of(policy, this_round, [1] * IMAGES) + flat_gradient(loss, policy)
    assert distance(got, truth) <= 1e-5
    assert metrics["base_distance"] == pytest.approx(sum(distances) / 2, rel=1e-4)


def test_normalised_parts_use_the_rounds_before() -> None:
    """The first round is scored once to find the scale; later ones use what came before them. By hand."""
    policy = tiny_policy(steps=2)
    reward = WeightedReward(
        [WeightedPart("a", Waves(1.3), 0.5, normalised=True), WeightedPart("b", Waves(2.3), 2.0)], device=CPU
    )
    algorithm = make(Draft, draft(last_steps=1), policy, reward)
    for number in (1, 2):
        this_round = round_of(policy, IMAGES, number=number)
        with torch.no_grad():
            images = policy.decode(chain(policy, this_round, [2] * IMAGES))
            scores = reward.parts[0].reward(images, [])
        before = reward.statistics["a"]
        got, _ = gradient_of(algorithm, policy, this_round)
        std = float(scores.std(correction=0)) if number == 1 else before.std
        same = WeightedReward(
            [WeightedPart("a", Waves(1.3), 0.5 / (std + EPSILON)), WeightedPart("b", Waves(2.3), 2.0)], device=CPU
        )
        assert distance(got, truth_of(policy, this_round, [1] * IMAGES, same)) <= 1e-4
        assert reward.statistics["a"].count == number * IMAGES


class YesNo:
    differentiable, networks = False, ()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return (images_BCHW.mean(dim=(1, 2, 3)) > 0.5).float()


class Detached(Waves):
    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return super().__call__(images_BCHW.detach(), prompts)


class Broken(Waves):
    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return super().__call__(images_BCHW, prompts) * torch.tensor([1.0, math.nan, 1.0, 1.0])[: len(images_BCHW)]


def test_rewards_without_gradient_are_refused() -> None:
    policy = tiny_policy(steps=2)
    reward = WeightedReward([WeightedPart("fine", Waves()), WeightedPart("yes_no", YesNo())], device=CPU)
    with pytest.raises(ConfigError, match=r"reward yes_no has no gradient.*method\.kind draft.*reinforce"):
        make(Draft, draft(), policy, reward)
    share = WeightedReward([WeightedPart("half", Waves(), target_share=0.5)], device=CPU)
    with pytest.raises(ConfigError, match=r"reward half has no gradient"):
        make(Draft, draft(), policy, share)
    lying = WeightedReward([WeightedPart("cut", Detached())], device=CPU)
    with pytest.raises(RewardError, match="reward cut must return scores with a gradient"):
        gradient_of(make(Draft, draft(), policy, lying), policy, round_of(policy, IMAGES))


def test_scores_that_are_not_finite_name_the_image() -> None:
    policy = tiny_policy(steps=2)
    reward = WeightedReward([WeightedPart("odd", Broken())], device=CPU)
    with pytest.raises(RewardError, match=r"reward odd gave nan for image 1 of the round, prompt 'two'"):
        gradient_of(make(Draft, draft(), policy, reward), policy, round_of(policy, IMAGES))


def test_rehearsal_makes_every_kind_of_piece_and_leaves_the_weights() -> None:
    policy = tiny_policy(steps=6)
    for config in (draft(last_steps="all"), draft(noise_samples=2)):
        algorithm = make(Draft, config, policy, kept_steps=2)
        before = [parameter.detach().clone() for parameter in policy.trainable().values()]
        noise = Noise(seed=0, stream=Stream.PROBE, round_number=0, shape=policy.shape)
        algorithm.rehearse(policy, noise, 3, ["text"])
        assert 0 < float(algorithm.pieces.gradients.max_abs()) < math.inf
        assert all(torch.equal(a, b) for a, b in zip(before, policy.trainable().values(), strict=True))


def test_progress_is_all_told() -> None:
    """The image-steps that a round announces are those it reports."""
    policy = tiny_policy(steps=6)
    for config in (draft(last_steps=4), draft(noise_samples=3)):
        algorithm, advances = make(Draft, config, policy, micro_batch=2), []
        this_round = round_of(policy, 5)
        this_round.advance = advances.append
        gradient_of(algorithm, policy, this_round)
        assert sum(advances) == 5 * algorithm.passes(policy)
        assert set(this_round.clock.seconds) == {"rollout", "reward", "train"}


@pytest.mark.parametrize(("count", "most", "size"), [(9, 8, 5), (8, 8, 8), (3, 64, 3), (10, 1, 1), (200, 64, 50)])
def test_batches_are_even(count: int, most: int, size: int) -> None:
    assert even_size(count, most) == size


class Ink:
    """A reward that is the mean brightness of each image: B."""

    differentiable, networks = True, ()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return images_BCHW.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("config", [{"last_steps": "all"}, {"last_steps": 1}, {"noise_samples": 2}])
def test_it_learns(config: dict[str, Any]) -> None:
    """Ten updates raise the brightness of images from noise that training never saw by a tenth of the range or more."""
    policy = tiny_policy(steps=5, eta=0.0)
    engine = ReferenceEngine(policy.trainable(), OptimizerConfig(learning_rate=3e-3), ALONE)
    reward = WeightedReward([WeightedPart("ink", Ink())], device=CPU)
    algorithm = Draft(draft(**config), reward, Pieces(engine.gradients), ALONE, knobs(8))

    def brightness() -> float:
        this_round = round_of(policy, 16, number=999)
        with torch.no_grad():
            return float(policy.decode(chain(policy, this_round, [5] * 16)).mean())

    before = brightness()
    for number in range(1, 11):
        (part,) = algorithm.updates(algorithm.collect(policy, round_of(policy, 8, number=number)))
        algorithm.differentiate(policy, part)
        engine.apply()
    assert brightness() > before + 0.1
