"""Images from fixed noise, scored by every part, held-out ones too.

Shapes: n images of this rank, N images over all ranks, P reward parts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.memory.offload import decoding, scoring
from memdiff.models.finite_states import FiniteStates, decoded
from memdiff.models.pixels import to_uint8
from memdiff.models.policy import rollout
from memdiff.rewards.guards import diversity
from memdiff.rewards.non_finite import settle
from memdiff.rewards.weighted_sum import Statistics, WeightedReward
from memdiff.runtime.placement import HOST, place
from memdiff.training.build import Parts


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found; the same on every rank."""

    images_NHWC: np.ndarray  # uint8
    numbers: Mapping[str, float]  # the row's keys under `evaluate/`
    reward_mean: float
    statistics: Statistics  # those that normalised parts were measured with
    prompts: Sequence[str]  # of each image
    scores: Mapping[str, Sequence[float]]  # raw, of each image by each part


def evaluate(parts: Parts, advance: Callable[[int], None], statistics: Statistics | None = None) -> Evaluation:
    """Samples `evaluate.images` images from noise that never changes. Collective.

    `statistics` are those of the run's first evaluation (None: this is it), so that normalised parts can be compared
    over the rounds. NumericError where an image is not finite.
    """
    recipe, policy, ranks = parts.recipe, parts.policy, parts.ranks
    count = recipe.evaluate.images
    block = ranks.block(count)
    prompts = parts.prompts.of_evaluation(block)
    policy.encode(prompts)
    noise = Noise(seed=recipe.run.seed, stream=Stream.EVALUATE, round_number=0, shape=policy.shape)
    with torch.no_grad(), parts.engine.evaluated():
        batch = min(parts.knobs.rollout_batch, max(1, len(block)))
        states = FiniteStates()
        x_0 = rollout(
            policy, noise, block, prompts, batch=batch, storage=policy.dtype, store=states.store, on_step=advance
        )
        states.check(policy, block)
        with decoding(policy, parts.knobs):
            images_nCHW = decoded(policy, x_0, block)
            with scoring(parts.eval_reward, parts.knobs):
                raw_Pn = parts.eval_reward.raw(images_nCHW, prompts)
                differences = diversity(parts.reward, images_nCHW, ranks, num_images=count)
    raw_PN = ranks.gather(raw_Pn, count, dim=1)
    images_NCHW = ranks.gather(to_uint8(images_nCHW), count)
    raw_PN = settle(raw_PN, parts.eval_reward.parts, parts.prompts.of_evaluation(range(count))).raw_PN
    trained_PN, held_out_PN = raw_PN.split([len(parts.reward.parts), len(raw_PN) - len(parts.reward.parts)])
    statistics = statistics or parts.reward.statistics_of(trained_PN)
    # Of a method that takes no reward nothing says which round is the best.
    reward_mean = parts.reward.value(trained_PN, statistics) if parts.reward.parts else math.nan
    numbers = {"reward_mean": reward_mean, "images": count, **part_means(parts.eval_reward, raw_PN)}
    numbers |= {key: float(value) for key, value in differences.items() if value.isfinite()}
    for name, scores_N in zip(parts.held_out, held_out_PN, strict=True):
        numbers[f"reward_std/{name}"] = float(scores_N.std(correction=0))
    images = place(images_NCHW, HOST).permute(0, 2, 3, 1).numpy()
    scores = dict(zip(parts.eval_reward.names, raw_PN.tolist(), strict=True))
    numbers = {f"evaluate/{key}": value for key, value in numbers.items()}
    return Evaluation(images, numbers, reward_mean, statistics, parts.prompts.of_evaluation(range(count)), scores)


def part_means(reward: WeightedReward, raw_PN: torch.Tensor) -> dict[str, float]:
    """`reward/<name>`: mean raw score; `share/<name>` beside it where scores are yes or no."""
    numbers = {}
    for part, scores_N in zip(reward.parts, raw_PN, strict=True):
        numbers[f"reward/{part.name}"] = float(scores_N.mean())
        if part.is_share:
            numbers[f"share/{part.name}"] = float(scores_N.mean())
    return numbers
