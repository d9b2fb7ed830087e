"""`memory.one_pass`: REINFORCE's gradient from the rollout's own forward, against replaying and plain autograd."""

from typing import Any

import pytest
import torch

from memdiff.errors import ConfigError
from memdiff.methods.config import ReinforceConfig
from memdiff.methods.experience import Metrics
from memdiff.methods.reinforce import Experience, Reinforce
from memdiff.methods.reinforce_one_pass import ReinforceOnePass
from memdiff.models.config import AdapterConfig
from memdiff.planner.ledger import Ledger
from memdiff.recipe.reading import check_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces
from tests.gradients.test_reinforce import autograd_truth, gradient, round_of
from tests.helpers import half_precision
from tests.helpers.tiny import CPU, tiny_policy, tiny_stable_diffusion
from tests.workers.engine_parity import IMAGES, Brightness, knobs, plain_autograd, relative, rounding_of

WEIGHTS = (*[1.0, 0.0, 2.0] * 5, 9.0)  # of 16 steps; the last has no density


def objective_of(policy: Any, *, one_pass: bool = True, micro_batch: int = 4, **config: Any) -> Reinforce:
    reward = WeightedReward([WeightedPart("brightness", Brightness())], device=CPU)
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    settings = ReinforceConfig.model_validate({"kind": "reinforce", **config})
    kind = ReinforceOnePass if one_pass else Reinforce
    return kind(settings, reward, pieces, Ranks(0, 1, CPU), knobs(micro_batch, one_pass=one_pass))


def collected(policy: Any, images: int = 6, **options: Any) -> tuple[Reinforce, Experience]:
    algorithm = objective_of(policy, **options)
    return algorithm, algorithm.collect(policy, round_of(policy, images))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "adapter", [None, AdapterConfig(rank=2), AdapterConfig(rank=2, convolutions=True)], ids=["whole", "LoRA", "conv"]
)
@pytest.mark.parametrize("weights", ["uniform", WEIGHTS])
def test_gradient_is_that_of_one_graph(reduction: str, adapter: AdapterConfig | None, weights: Any) -> None:
    """fp64: <= 1e-10 relative, four images a piece with an adapter, the last piece filled up.

    Two updates, so that the trajectory is there to be put into one graph.
    """
    policy = tiny_policy(steps=16, adapter=adapter, dtype=torch.float64)
    images = 8  # 1/8 is exact in fp32, which advantages are in
    algorithm, experience = collected(
        policy, images, micro_batch=3, log_prob_reduction=reduction, step_weights=weights, inner_updates=2,
        advantage_clip=1.0,
    )  # fmt: skip
    numbers = [1.0] * 15 + [0.0] if weights == "uniform" else [*WEIGHTS[:15], 0.0]
    truth = autograd_truth(policy, experience, algorithm.config, numbers)
    assert truth.norm() > 0
    assert relative([gradient(algorithm, policy, experience)], [truth]) < 1e-10


def test_single_precision() -> None:
    """<= 1e-4: what the advantages cancel (their sum is 0) is summed up first, so that it is rounded first."""
    policy = tiny_policy(steps=16)
    algorithm, experience = collected(policy, inner_updates=2)
    truth = autograd_truth(policy, experience, algorithm.config, [1.0] * 16)
    assert relative([gradient(algorithm, policy, experience)], [truth]) < 1e-4


def test_checkpointing_guidance_and_prompts_of_a_text_model() -> None:
    """A guided Stable Diffusion, advantages by prompt, feed-forwards or blocks recomputed or not, guidance in one call
    or two: as replaying, <= 1e-4. LoRA on attention and convolutions."""
    gradients = []
    for one_pass, checkpointing, in_two in (
        (False, "none", False),
        (True, "none", False),
        (True, "feed_forwards", False),
        (True, "blocks", True),
    ):
        policy = tiny_stable_diffusion(
            steps=5, guidance=5.0, adapter=AdapterConfig(rank=2, convolutions=True),
            activation_checkpointing=checkpointing, guidance_passes=2 if in_two else 1,
        )  # fmt: skip
        policy.encode(["a", "b"])
        this_round = round_of(policy, 6)
        batch = this_round.batch
        texts = ["a", "b"] * 3
        this_round.batch = type(batch)(batch.images, texts, batch.num_images, batch.noise, texts)
        algorithm = objective_of(policy, one_pass=one_pass, per_prompt=True, prompt_memory=0)
        gradients.append(gradient(algorithm, policy, algorithm.collect(policy, this_round)))
    assert gradients[0].norm() > 0
    assert all(relative([other], [gradients[0]]) < 1e-4 for other in gradients[1:])


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2, convolutions=True)], ids=["whole", "LoRA"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_second_update_replays(adapter: AdapterConfig | None, dtype: torch.dtype) -> None:
    """With weights as they were: every ratio is exactly 1, gradient and diagnostics are the first's; in fp16 the
    gradient is within twice what its rounding costs plain autograd."""
    policy = tiny_policy(steps=8, adapter=adapter, dtype=dtype)
    algorithm, experience = collected(policy, inner_updates=2)
    algorithm.pieces.gradients.zero()
    metrics: list[Metrics] = []
    sums = []
    for part in algorithm.updates(experience):
        metrics.append(algorithm.differentiate(policy, part))
        sums.append(torch.cat([total.flatten() for total in algorithm.pieces.gradients.sums]))
        algorithm.pieces.gradients.zero()
    assert metrics[1]["clip_fraction"] == metrics[1]["approx_kl"] == 0.0
    bound = 1e-4
    if dtype == torch.float16:
        ranks = Ranks(0, 1, CPU)
        truth = plain_autograd(policy, experience, ranks, chunk=16)
        bound = half_precision.most(rounding_of(policy, truth, experience, ranks, steps=8, adapter=adapter))
    assert relative([sums[1]], [sums[0]]) < bound
    for name in ("log_prob_mean", "log_prob_sum"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-6)
    assert metrics[0]["step_gradient_norm"][:7] == pytest.approx(metrics[1]["step_gradient_norm"][:7], rel=1e-5)


def test_same_images_rewards_and_diagnostics_as_replaying() -> None:
    """As replaying gives, to rounding, without a trajectory."""
    policy = tiny_policy(steps=8, adapter=AdapterConfig(rank=2))
    both = {one_pass: collected(policy, one_pass=one_pass) for one_pass in (False, True)}
    (replaying, replayed), (taking, one_pass_experience) = both[False], both[True]
    assert torch.allclose(one_pass_experience.rewards_N, replayed.rewards_N, atol=1e-6)
    assert one_pass_experience.trajectory.num_bytes == 0 and replayed.trajectory.num_bytes > 0
    metrics = replaying.differentiate(policy, replayed), taking.differentiate(policy, one_pass_experience)
    assert metrics[0].keys() == metrics[1].keys()
    assert relative(list(taking.pieces.gradients.sums), list(replaying.pieces.gradients.sums)) < 1e-4
    assert one_pass_experience.eligibilities == [] and taking.passes(policy) == 8 and replaying.passes(policy) == 15


@pytest.mark.parametrize("one_pass", [False, True])
def test_steps_outside_an_adapters_window_take_no_part(one_pass: bool) -> None:
    """An adapter in steps [2, 5) of 8: the gradient is that of these steps alone."""
    policy = tiny_policy(steps=8, adapter=AdapterConfig(rank=2, steps=(2, 5)))
    algorithm, experience = collected(policy, one_pass=one_pass, inner_updates=2)
    terms, images = torch.zeros(()), experience.trajectory.images
    for step in (2, 3, 4):
        x_t, x_s = experience.trajectory.transitions([(image, step) for image in range(images)])
        z = (x_s - policy.mean(x_t, [step] * images)) / policy.schedule.sigma[step]
        terms = terms + (experience.advantages_n * 0.5 * z.square().flatten(1).mean(1)).mean()
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(terms, list(policy.trainable().values()))])
    assert truth.norm() > 0
    assert relative([gradient(algorithm, policy, experience)], [truth]) < 1e-5
    metrics = algorithm.differentiate(policy, experience)
    assert [norm is not None for norm in metrics["step_gradient_norm"]] == [2 <= step < 5 for step in range(8)]


def test_what_it_keeps() -> None:
    """While it samples: an fp32 copy of what is trained for each image, no trajectory; after the update neither."""
    policy = tiny_policy(steps=5, adapter=AdapterConfig(rank=2))
    algorithm = objective_of(policy)
    trained = sum(parameter.numel() for parameter in policy.trainable().values())
    with Ledger(device=CPU) as ledger:
        experience = algorithm.collect(policy, round_of(policy, 6))
        # Batches of four: the last one, of two, is filled up.
        assert ledger.live["trajectory"] == 0 and ledger.live["gradients"] == 8 * trained * 4
        algorithm.differentiate(policy, experience)
        assert ledger.live["gradients"] == 0


def test_half_precision() -> None:
    """fp16 against the same trajectory, a pair at a time, at a fixed scale: twice what rounding costs that."""
    policy = tiny_policy(steps=16, dtype=torch.float16, adapter=AdapterConfig(rank=2))
    algorithm, experience = collected(policy, IMAGES, inner_updates=2)
    ranks = Ranks(0, 1, CPU)
    truth = plain_autograd(policy, experience, ranks, chunk=1)
    rounding = rounding_of(policy, truth, experience, ranks, steps=16, adapter=AdapterConfig(rank=2))
    gradient(algorithm, policy, experience)
    assert relative(list(algorithm.pieces.gradients.sums), truth) <= half_precision.most(rounding)


def recipe(**sections: Any) -> Recipe:
    least = {
        "model": {"kind": "embedded", "name": "digits"},
        "sampler": {"steps": 5, "eta": 1.0},
        "method": {"kind": "reinforce"},
        "reward": [{"kind": "digits", "mode": "log_probability"}],
        "memory": {"one_pass": True},
    }
    return check_recipe(least | sections, source="test")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"kind": "reinforce", "baseline": "predicted_image"}, "memory.one_pass goes with method.baseline: none"),
        ({"kind": "reinforce", "kl_weight": 0.1}, "memory.one_pass goes with method.baseline: none"),
        ({"kind": "draft"}, "memory.one_pass is for method.kind: reinforce, got draft"),
    ],
)
def test_where_it_does_not_go(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(method=method)
    assert recipe().memory.one_pass is True


def test_a_window_without_a_density_is_refused() -> None:
    """The last step of this chain has none: an adapter that acts there alone would learn nothing."""
    policy = tiny_policy(steps=5, adapter=AdapterConfig(rank=2, steps=(4, 5)))
    noise = round_of(policy, 1).batch.noise
    with pytest.raises(ConfigError, match=r"no step of this chain has a density, a weight and something to train"):
        objective_of(policy).rehearse(policy, noise, 1, [""])
