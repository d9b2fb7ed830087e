"""From recipe sections to rewards. Each family's module is imported only where a recipe asks for it."""

from collections.abc import Sequence
from typing import assert_never

import torch

from memdiff.rewards.backbones import Backbones
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
from memdiff.rewards.weighted_sum import Features, WeightedPart, WeightedReward
from memdiff.runtime.state_dicts import told_in_one_line


def build_reward(part: AnyPart, *, device: torch.device, backbones: Backbones | None = None) -> Reward:
    """One part's reward, its networks on `device`. Raises ConfigError where it can't be loaded.

    `backbones` are those that others have loaded, for parts that read the same.

    The text networks of the CLIP family stay on the host in fp32: they run once a prompt, not once an image.
    """
    return _build(part, device, backbones or Backbones(), skeleton=False)[0]


def build_weighted(parts: Sequence[AnyPart], *, device: torch.device, skeleton: bool = False) -> WeightedReward:
    """The sum that a recipe's list describes.

    `skeleton`: the same networks without their weights, for plans: no weights are looked for, and scores mean nothing.
    The architectures of public models are written down; others' are read from the folder's or the hub's config.
    """
    backbones = Backbones()
    return WeightedReward(
        [_weighted(part, *_build(part, device, backbones, skeleton=skeleton)) for part in parts], device=device
    )


def _build(
    part: AnyPart, device: torch.device, backbones: Backbones, *, skeleton: bool
) -> tuple[Reward, Features | None]:
    """The reward, and the embedding of images that it computes on its way, where it has one."""
    if isinstance(part, DigitsConfig | PythonConfig | JpegConfig):  # no network from elsewhere
        return _built(part, device, backbones, skeleton=skeleton)
    with told_in_one_line(f"reward {part_name(part)}: {part.path}"):
        return _built(part, device, backbones, skeleton=skeleton)


def _built(
    part: AnyPart, device: torch.device, backbones: Backbones, *, skeleton: bool
) -> tuple[Reward, Features | None]:
    match part:
        case ClassifierConfig():
            from memdiff.rewards.classifier import load_image_classifier, skeleton_image_classifier

            classifier = (skeleton_image_classifier if skeleton else load_image_classifier)(part, device, backbones)
            return classifier, classifier.features
        case DigitsConfig():
            from memdiff.rewards.digits import load_digits, skeleton_digits

            digits = (skeleton_digits if skeleton else load_digits)(part, device, backbones)
            return digits, digits.features
        case PythonConfig():
            from memdiff.rewards.python_function import load_python, skeleton_python

            return (skeleton_python if skeleton else load_python)(part), None
        case ImageRewardConfig():
            from memdiff.rewards.image_reward import load_image_reward, skeleton_image_reward

            return (skeleton_image_reward if skeleton else load_image_reward)(part, device), None
        case AestheticConfig() | PickScoreConfig() | HpsConfig() | ClipSimilarityConfig():
            from memdiff.rewards.clip import load_clip, skeleton_clip

            clip = (skeleton_clip if skeleton else load_clip)(part, device, backbones)
            return clip, clip.backbone
        case DetectionConfig():
            from memdiff.rewards.detection import load_detection, skeleton_detection

            return (skeleton_detection if skeleton else load_detection)(part, device, backbones), None
        case JpegConfig():
            from memdiff.rewards.jpeg import load_jpeg, skeleton_jpeg

            return (skeleton_jpeg if skeleton else load_jpeg)(part), None
        case _:
            assert_never(part)


def _weighted(part: AnyPart, reward: Reward, features: Features | None) -> WeightedPart:
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
        non_finite=part.non_finite,
    )
