"""From recipe sections to rewards. Each family's module is imported only where a recipe asks for it."""

from collections.abc import Sequence
from typing import assert_never

import torch

from memdiff.placement import place
from memdiff.rewards.confidence import is_yes_or_no
from memdiff.rewards.config import AnyPart, ClassifierConfig, Confidence, DigitsConfig, PythonConfig, part_name
from memdiff.rewards.families_config import (
    AestheticConfig,
    ClipSimilarityConfig,
    DetectionConfig,
    HpsConfig,
    ImageRewardConfig,
    JpegConfig,
    PickScoreConfig,
)
from memdiff.rewards.reward import Reward
from memdiff.rewards.weighted import Features, WeightedPart, WeightedReward


def build_reward(part: AnyPart, *, device: torch.device) -> Reward:
    """One part's reward, its networks on `device`. Raises ConfigError where it can't be loaded.

    The text networks of the CLIP family stay on the host in fp32: they run once a prompt, not once an image.
    """
    return _with_features(part, device)[0]


def build_weighted(parts: Sequence[AnyPart], *, device: torch.device) -> WeightedReward:
    """The sum that a recipe's list describes."""
    return WeightedReward([_weighted(part, device) for part in parts], device=device)


def _with_features(part: AnyPart, device: torch.device) -> tuple[Reward, Features | None]:
    """The reward, and the embedding of images that it computes on its way, where it has one."""
    match part:
        case ClassifierConfig():
            from memdiff.rewards.classifier import ClassifierReward

            classifier = ClassifierReward(part, device=device)
            return classifier, classifier.features
        case DigitsConfig():
            from memdiff.rewards.digits import DigitsReward

            digits = DigitsReward(part, device=device)
            return digits, digits.features
        case PythonConfig():
            from memdiff.rewards.python_function import PythonReward

            return PythonReward(part), None
        case ImageRewardConfig():
            return _image_reward(part, device), None
        case AestheticConfig() | PickScoreConfig() | HpsConfig() | ClipSimilarityConfig():
            from memdiff.rewards.clip import load_clip

            clip = load_clip(part, device)
            return clip, clip.tower
        case DetectionConfig():
            from memdiff.rewards.detection import load_detection

            return load_detection(part, device), None
        case JpegConfig():
            from memdiff.rewards.jpeg import load_jpeg

            return load_jpeg(part), None
        case _:
            assert_never(part)


def _image_reward(part: ImageRewardConfig, device: torch.device) -> Reward:
    from memdiff.rewards.image_reward import load_image_reward
    from memdiff.rewards.pretrained import network_dtype

    reward = load_image_reward(
        part.path,
        revision=part.revision,
        prompt=part.prompt,
        dtype=network_dtype(part.precision, device),
        checkpointing=part.checkpointing,
    )
    place(reward.net, device)
    return reward


def _weighted(part: AnyPart, device: torch.device) -> WeightedPart:
    return weighted_part(part, *_with_features(part, device))


def weighted_part(part: AnyPart, reward: Reward, features: Features | None) -> WeightedPart:
    """A part of the sum, with what its section says of it."""
    yes_or_no = isinstance(part, Confidence) and is_yes_or_no(part)
    return WeightedPart(
        name=part_name(part),
        reward=reward,
        weight=part.weight,
        chunk=part.chunk,
        is_share=yes_or_no,
        target_share=part.target_share if isinstance(part, Confidence) else None,
        normalised=part.normalise == "running",
        features=features,
    )
