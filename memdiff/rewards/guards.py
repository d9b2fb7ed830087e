"""Guards against over-optimisation: how much the images of a batch differ, and when to raise an alarm.

Differences between all pairs need no pairs. With m the mean of N images, and s the sum of N unit vectors,
    mean over pairs of |x_i - x_j|^2   = 2 / (N - 1) sum_i |x_i - m|^2
    mean over pairs of u_i . u_j       = (|s|^2 - N) / (N (N - 1))
so that each costs two sums over the ranks.

Shapes: n images of this rank, N over all ranks, C channels, H W pixels, D of an embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from memdiff.rewards.guards_config import GuardsConfig
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.placement import numbers_on, place
from memdiff.runtime.ranks import Ranks

MOST_EMBEDDED = 64  # images over all ranks that are embedded for their diversity: one more forward of a network each
DIVERSITIES = ("diversity_pixel", "diversity_feature", "evaluate/diversity_pixel", "evaluate/diversity_feature")


def pixel_diversity(images_nCHW: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Root mean square difference of a pixel over all pairs of images, in the images' units: a scalar. Collective.

    NaN for a single image.
    """
    count = ranks.sum(numbers_on(images_nCHW.device, [float(len(images_nCHW))]))[0]
    mean_CHW = ranks.sum(images_nCHW.sum(dim=0)) / count
    squares = ranks.sum((images_nCHW - mean_CHW).square().sum())
    return (2 * squares / ((count - 1) * mean_CHW.numel())).sqrt()


def feature_diversity(features_nD: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Mean cosine distance, 1 - cosine, over all pairs of embeddings: a scalar, 0 to 2. Collective. NaN for one."""
    count = ranks.sum(numbers_on(features_nD.device, [float(len(features_nD))], dtype=torch.float64))[0]
    sum_D = ranks.sum(normalize(features_nD.double(), dim=1).sum(dim=0))
    return 1 - (sum_D.square().sum() - count) / (count * (count - 1))


def diversity(
    reward: WeightedReward, images_nCHW: torch.Tensor, ranks: Ranks, *, num_images: int
) -> dict[str, torch.Tensor]:
    """`diversity_pixel` of all images, `diversity_feature` of at most 64 of them in the first part that embeds images.

    Collective. `num_images` over all ranks; the part's networks are where they score. Fewer images than ranks are not
    embedded: a rank would have none.
    """
    diversities = {"diversity_pixel": pixel_diversity(images_nCHW, ranks)}
    part = next((part for part in reward.parts if part.features is not None), None)
    if part is not None and num_images >= ranks.world_size:
        few_nCHW = images_nCHW[: max(1, MOST_EMBEDDED // ranks.world_size)]
        diversities["diversity_feature"] = feature_diversity(_embed(part, place(few_nCHW, reward.device)), ranks)
    return diversities


@torch.no_grad()
def _embed(part: WeightedPart, images_nCHW: torch.Tensor) -> torch.Tensor:
    assert part.features is not None
    return torch.cat([part.features(chunk_BCHW).float() for chunk_BCHW in images_nCHW.split(part.chunk)])


def watched(row: Mapping[str, Any], held_out: Sequence[str]) -> dict[str, float]:
    """The numbers of a row of metrics that later rows are held against."""
    keys = ["evaluate/reward_mean", *DIVERSITIES]
    keys += [f"evaluate/{what}/{name}" for name in held_out for what in ("reward", "reward_std")]
    return {key: row[key] for key in keys if row.get(key) is not None}


def alarms(
    row: Mapping[str, Any], first: Mapping[str, float], config: GuardsConfig, held_out: Sequence[str]
) -> list[str]:
    """What is wrong with a row of metrics.jsonl, one line each; `first` are the run's first `watched` numbers."""
    return [*_equal_rewards(row), *_alike(row, first, config), *_held_out_fell(row, first, config, held_out)]


def _equal_rewards(row: Mapping[str, Any]) -> list[str]:
    # A share part at its target also rewards all images alike, while its yes/no scores differ: that is no alarm.
    spreads = [value for key, value in row.items() if key == "reward_std" or key.startswith("reward_std/")]
    if not spreads or any(spread != 0 for spread in spreads):
        return []
    return ["every image of the round has the same reward (reward_std is 0): there is nothing to learn from"]


def _alike(row: Mapping[str, Any], first: Mapping[str, float], config: GuardsConfig) -> list[str]:
    messages = []
    for key in DIVERSITIES:
        now, before = row.get(key), first.get(key)
        if config.diversity is None or now is None or before is None or now >= config.diversity * before:
            continue
        messages.append(
            f"{key} is {now:.4g}, below {config.diversity:g} of its first value {before:.4g}: images grow alike; lower "
            "the learning rate or stop earlier"
        )
    return messages


def _held_out_fell(
    row: Mapping[str, Any], first: Mapping[str, float], config: GuardsConfig, held_out: Sequence[str]
) -> list[str]:
    trained, before = row.get("evaluate/reward_mean"), first.get("evaluate/reward_mean")
    if config.held_out_drop is None or trained is None or before is None or trained <= before:
        return []
    messages = []
    for name in held_out:
        now, start = row.get(f"evaluate/reward/{name}"), first.get(f"evaluate/reward/{name}")
        spread = first.get(f"evaluate/reward_std/{name}")
        if now is None or start is None or spread is None or now >= start - config.held_out_drop * spread:
            continue
        messages.append(
            f"held-out {name} fell from {start:.4g} to {now:.4g}, by more than {config.held_out_drop:g} of its std "
            f"{spread:.4g}, while the trained reward rose from {before:.4g} to {trained:.4g}: it is being fooled"
        )
    return messages
