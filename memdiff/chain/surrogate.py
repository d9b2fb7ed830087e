"""The slope of PPO's clipped surrogate, by which DDPO weighs log-probs (Schulman et al. 2017; Black et al. 2023).

Shapes: B pairs of an image and a step.
"""

import torch


def clipped_slope(
    log_prob_B: torch.Tensor, old_B: torch.Tensor, advantage_B: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ratio, d J / d log_prob) of PPO's clipped surrogate, each B (Schulman et al. 2017, equation 7).

    min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A) has slope ratio * A, or 0 where the clamped term is the smaller.
    With old = the same log-prob the ratio is exactly 1 and the slope exactly A: REINFORCE.
    """
    ratio_B = torch.exp(log_prob_B - old_B)
    clipped = torch.where(advantage_B > 0, ratio_B > 1 + clip, ratio_B < 1 - clip)
    return ratio_B, torch.where(clipped, 0.0, ratio_B * advantage_B)
