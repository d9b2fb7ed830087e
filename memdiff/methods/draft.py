"""DRaFT: the reward's gradient through the last K steps of the chain (Clark et al. 2023, section 4).

    grad J = 1/N sum_i d r(x_0) / d theta,    x_0 = the chain's end, differentiated from step T - K on

K = T is DRaFT, K < T DRaFT-K: the steps before run without a graph.

DRaFT-LV (`noise_samples` n, K = 1) differentiates the last step n times instead, each time from the finished latent
noised anew to the last timestep t, and averages; x_0 itself is sampled without a graph and is not scored:

    x_t^j = sqrt(ab_t) x_0 + sqrt(1 - ab_t) e_j,    grad J = 1/N sum_i 1/n sum_j d r(step(x_t^j)) / d theta

Where the last step adds noise, that of the chain's own last step serves all n.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.memory.knobs import Knobs
from memdiff.methods.experience import Round
from memdiff.methods.reward_gradient import Group, RewardGradient
from memdiff.methods.reward_gradient_config import DraftConfig
from memdiff.methods.scoring import Rows, Scored
from memdiff.methods.sweep import Sweep
from memdiff.models.policy import Policy
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.placement import upload
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces


class Draft(RewardGradient[DraftConfig]):
    """Every image's gradient begins at the same step."""

    def __init__(self, config: DraftConfig, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs) -> None:
        super().__init__(config, reward, pieces, ranks, knobs)
        self.queries = config.noise_samples or 1

    def starts(self, policy: Policy, this_round: Round) -> Sequence[int]:
        """First differentiated step, the same for every image: the chain's steps less K."""
        steps = policy.schedule.steps
        return [steps - self.config.steps_of(steps)] * len(this_round.batch.images)

    def begin(self, policy: Policy, starts: Sequence[int]) -> int:
        """DRaFT-LV samples the whole chain without a graph."""
        return super().begin(policy, starts) if self.config.noise_samples is None else policy.schedule.steps

    def forward_backward(self, policy: Policy, this_round: Round, rows: Rows, group: Group, sweep: Sweep) -> Scored:
        """Through the last K steps; DRaFT-LV through the last one, n times.

        DRaFT-LV's scores are the mean over the n samples, its images those of the last one.
        """
        if self.config.noise_samples is None:
            return super().forward_backward(policy, this_round, rows, group, sweep)
        last, noise = policy.schedule.steps - 1, this_round.batch.noise
        ab_t = policy.schedule.alpha_bar_t[last]
        renoise = Noise(seed=noise.seed, stream=Stream.RENOISE, round_number=noise.round, shape=policy.shape)
        each = replace(rows, weight=rows.weight / self.config.noise_samples)
        scored, scores = None, []
        for sample in range(self.config.noise_samples):
            e_BCHW = upload(renoise.step(rows.images, sample), policy.device)
            x_t_BCHW = ab_t**0.5 * group.x_BCHW + (1 - ab_t) ** 0.5 * e_BCHW
            scored = sweep.run(policy, this_round, each, x_t_BCHW, begin=last, pull_back=self.scoring.pull_back)
            scores.append(scored.raw_PB)
        assert scored is not None, "noise_samples is 1 or more"
        return replace(scored, raw_PB=torch.stack(scores).mean(dim=0))

    def rehearsed_start(self, policy: Policy) -> int:
        """The last step where it alone is differentiated."""
        steps = policy.schedule.steps
        return steps - 1 if self.config.steps_of(steps) == 1 else super().rehearsed_start(policy)

    def passes(self, policy: Policy) -> int:
        """All steps forward, the differentiated ones back."""
        steps, samples = policy.schedule.steps, self.config.noise_samples
        return steps + (self.config.steps_of(steps) if samples is None else 2 * samples)
