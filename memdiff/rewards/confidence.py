"""From the log-probability of a label to a score.

Shapes: B images.
"""

import torch

from memdiff.rewards.config import Confidence


def confidence_score(log_probability_B: torch.Tensor, config: Confidence) -> torch.Tensor:
    """The score that `config.mode` names: B. `binary`, `share` and the thresholds of `confident` have no gradient."""
    probability_B = log_probability_B.exp()
    sure_yes = probability_B >= config.high
    match config.mode:
        case "binary" | "share":
            return sure_yes.to(probability_B.dtype)
        case "confident":
            return torch.where(sure_yes | (probability_B <= config.low), probability_B, 0.0)
        case "probability":
            return probability_B
        case "log_probability":
            return log_probability_B


def is_yes_or_no(config: Confidence) -> bool:
    """Whether scores are 0 or 1, so that their mean is a share of the images."""
    return config.mode in ("binary", "share")


def has_gradient(config: Confidence) -> bool:
    """Whether a score follows small changes of an image."""
    return not is_yes_or_no(config)
