"""The embedded digit classifiers as rewards.

Shapes: B images, K digits.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from memdiff.digits.classifiers import DigitClassifier, load_classifier, new_classifier
from memdiff.rewards.backbones import Backbones
from memdiff.rewards.confidence import confidence_score, has_gradient
from memdiff.rewards.config import DigitsConfig
from memdiff.runtime.placement import numbers_on, place


class DigitsReward:
    """Scores the probability of a group of digits, or of its likeliest. Fulfils memdiff.rewards.reward.Reward."""

    def __init__(self, config: DigitsConfig, network: DigitClassifier, *, device: torch.device) -> None:
        """`network` is frozen and moved to `device`."""
        self.config, self.differentiable = config, has_gradient(config)
        self.backbone = network.eval().requires_grad_(False)
        place(network, device)

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The digit classifier, the only network of this reward."""
        return (self.backbone,)

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """What `mode` makes of the probability of the configured digits, B fp32; prompts play no part."""
        return self.head(self.backbone(images_BCHW), prompts)

    def head(self, outputs: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The same from the ten digits' logits, B K."""
        del prompts
        log_probabilities_BK = outputs.log_softmax(dim=1)
        group_BK = log_probabilities_BK[:, numbers_on(log_probabilities_BK.device, self.config.digits)]
        pooled_B = group_BK.logsumexp(dim=1) if self.config.pool == "sum" else group_BK.amax(dim=1)
        return confidence_score(pooled_B, self.config)

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The classifier's penultimate activations: B D fp32."""
        return self.backbone.features(images_BCHW)


def load_digits(config: DigitsConfig, device: torch.device, backbones: Backbones | None = None) -> DigitsReward:
    """With the shipped weights. Raises ConfigError in one line where their file is damaged."""
    return _on_its_network(config, load_classifier, device, backbones)


def skeleton_digits(config: DigitsConfig, device: torch.device, backbones: Backbones | None = None) -> DigitsReward:
    """The same network without its weights."""
    return _on_its_network(config, new_classifier, device, backbones)


def _on_its_network(
    config: DigitsConfig,
    make: Callable[[Literal["reward", "judge"]], DigitClassifier],
    device: torch.device,
    backbones: Backbones | None,
) -> DigitsReward:
    network = (backbones or Backbones()).once(config.classifier, lambda: make(config.classifier))
    return DigitsReward(config, network, device=device)
