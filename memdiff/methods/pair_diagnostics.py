"""Diagnostics of REINFORCE, summed piece by piece.

Shapes: B pairs of one piece, K steps.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from memdiff.chain.schedule import mean_per_prediction
from memdiff.methods.experience import Metrics
from memdiff.methods.reinforce_config import ReinforceConfig
from memdiff.models.policy import Policy
from memdiff.runtime.placement import numbers_on
from memdiff.runtime.ranks import Ranks


class PairSums(NamedTuple):
    """Sums over the pairs of some pieces."""

    totals_4: torch.Tensor  # pairs, clipped pairs, approximate KL, log-prob (mean over C H W)
    squares_K: torch.Tensor
    kl_to_base: torch.Tensor


class PairDiagnostics:
    """Sums of diagnostics over pairs of `steps`, kept on the device until the round's row is written.

    `sums` is assigned as a whole, once a piece's gradient is added: a piece that fails before counts nowhere.
    """

    def __init__(self, policy: Policy, config: ReinforceConfig, steps: Sequence[int], device: torch.device) -> None:
        schedule = policy.schedule
        self._dimensions = math.prod(policy.shape)
        self._reduction, self._steps = config.log_prob_reduction, steps
        self._to_base = config.kl_weight > 0
        zeros_4, zeros_K = torch.zeros(4, device=device), torch.zeros(schedule.steps, device=device)
        self.sums = PairSums(zeros_4, zeros_K, torch.zeros((), device=device))
        self._sigma_K = numbers_on(device, schedule.sigma, dtype=torch.float32)
        self._per_prediction_K = numbers_on(device, [mean_per_prediction(schedule, k) for k in range(schedule.steps)])

    def after(
        self,
        log_prob_B: torch.Tensor,
        ratio_B: torch.Tensor,
        slope_B: torch.Tensor,
        d_loss_B: torch.Tensor,
        advantage_B: torch.Tensor,
        steps: Sequence[int],
        count: int,
        to_base_B: torch.Tensor | None = None,
    ) -> PairSums:
        """The sums with one piece more; only its first `count` rows are valid. `to_base_B`: the KL to the base."""
        step_B = numbers_on(log_prob_B.device, steps)
        per_dimension_B = log_prob_B if self._reduction == "mean" else log_prob_B / self._dimensions
        clipped = ((slope_B == 0) & (advantage_B != 0)).float()
        approx_kl_B = ratio_B - 1 - torch.log(ratio_B)  # Schulman's low-variance estimator
        rows = torch.stack([torch.ones_like(clipped), clipped, approx_kl_B, per_dimension_B])
        totals_4 = self.sums.totals_4 + rows[:, :count].sum(dim=1)
        # log p gives the length of z = (x_s - mean) / sigma, and d log p / d mean = z / sigma.
        sigma_B = self._sigma_K[step_B]
        z_square_B = -2 * self._dimensions * (per_dimension_B + sigma_B.log() + 0.5 * math.log(2 * math.pi))
        per_mean_B = z_square_B.clamp(min=0).sqrt() / sigma_B
        per_mean_B = per_mean_B / self._dimensions if self._reduction == "mean" else per_mean_B
        norm_B = d_loss_B.abs() * per_mean_B * self._per_prediction_K[step_B]
        squares_B = norm_B[:count].square().to(self.sums.squares_K.dtype)
        squares_K = self.sums.squares_K.index_add(0, step_B[:count], squares_B)
        kl_to_base = self.sums.kl_to_base if to_base_B is None else self.sums.kl_to_base + to_base_B[:count].sum()
        return PairSums(totals_4, squares_K, kl_to_base)

    def metrics(self, ranks: Ranks) -> Metrics:
        """`step_gradient_norm`: L2 norm over a step's images of d J / d prediction (x0 unclipped).

        `kl_to_base`: mean over pairs, reduced over C H W as the log-probs of the loss are.
        """
        pairs, clipped, kl, per_dimension = ranks.sum(self.sums.totals_4).tolist()
        norms = (ranks.sum(self.sums.squares_K).sqrt() / ranks.world_size).tolist()
        to_base = {"kl_to_base": float(ranks.sum(self.sums.kl_to_base)) / pairs} if self._to_base else {}
        return to_base | {
            "clip_fraction": clipped / pairs,
            "approx_kl": kl / pairs,
            "log_prob_mean": per_dimension / pairs,
            "log_prob_sum": per_dimension / pairs * self._dimensions,
            "step_gradient_norm": [norm if step in self._steps else None for step, norm in enumerate(norms)],
        }
