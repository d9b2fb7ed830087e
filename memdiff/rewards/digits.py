"""The embedded digit classifiers as rewards.

Shapes: B images, K digits.
"""

from collections.abc import Sequence

import torch

from memdiff.digits.classifiers import DigitClassifier, load_classifier, new_classifier
from memdiff.rewards.confidence import confidence_score, has_gradient
from memdiff.rewards.config import DigitsConfig
from memdiff.runtime.placement import numbers_on, place


class DigitsReward:
    """Scores the probability of a group of digits, or of its likeliest. Fulfils memdiff.rewards.reward.Reward."""

    def __init__(self, config: DigitsConfig, network: DigitClassifier, *, device: torch.device) -> None:
        """`network` is frozen and moved to `device`."""
        self.config, self.differentiable = config, has_gradient(config)
        self._network = network.eval().requires_grad_(False)
        place(network, device)

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The digit classifier, the only network of this reward."""
        return (self._network,)

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """What `mode` makes of the probability of the configured digits, B fp32; prompts play no part."""
        log_probabilities_BK = self._network(images_BCHW).log_softmax(dim=1)
        group_BK = log_probabilities_BK[:, numbers_on(log_probabilities_BK.device, self.config.digits)]
        pooled_B = group_BK.logsumexp(dim=1) if self.config.pool == "sum" else group_BK.amax(dim=1)
        return confidence_score(pooled_B, self.config)

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The classifier's penultimate activations: B D fp32."""
        return self._network.features(images_BCHW)


def load_digits(config: DigitsConfig, device: torch.device) -> DigitsReward:
    """With the shipped weights. Raises ConfigError in one line where their file is damaged."""
    return DigitsReward(config, load_classifier(config.classifier), device=device)


def skeleton_digits(config: DigitsConfig, device: torch.device) -> DigitsReward:
    """The same network without its weights."""
    return DigitsReward(config, new_classifier(config.classifier), device=device)
