"""From recipe sections to rewards. Each family's module is imported only where a recipe asks for it."""

from collections.abc import Sequence
from typing import assert_never

import torch

from memdiff.rewards.confidence import is_yes_or_no
from memdiff.rewards.config import ClassifierConfig, Confidence, DigitsConfig, PythonConfig, RewardPart, part_name
from memdiff.rewards.reward import Reward
from memdiff.rewards.weighted import WeightedPart, WeightedReward


def build_reward(part: RewardPart, *, device: torch.device) -> Reward:
    """One part's reward, its networks on `device`. Raises ConfigError where it can't be loaded."""
    match part:
        case ClassifierConfig():
            from memdiff.rewards.classifier import ClassifierReward

            return ClassifierReward(part, device=device)
        case DigitsConfig():
            from memdiff.rewards.digits import DigitsReward

            return DigitsReward(part, device=device)
        case PythonConfig():
            from memdiff.rewards.python_function import PythonReward

            return PythonReward(part)
        case _:
            assert_never(part)


def build_weighted(parts: Sequence[RewardPart], *, device: torch.device) -> WeightedReward:
    """The sum that a recipe's list describes."""
    return WeightedReward([_weighted(part, device) for part in parts], device=device)


def _weighted(part: RewardPart, device: torch.device) -> WeightedPart:
    yes_or_no = isinstance(part, Confidence) and is_yes_or_no(part)
    return WeightedPart(
        name=part_name(part),
        reward=build_reward(part, device=device),
        weight=part.weight,
        chunk=part.chunk,
        is_share=yes_or_no,
        target_share=part.target_share if isinstance(part, Confidence) else None,
    )
