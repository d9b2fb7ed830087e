"""DRaFT: the reward's gradient through the last K steps of the chain (Clark et al. 2023, section 4).

    grad J = 1/N sum_i d r(x_0) / d theta,    x_0 = the chain's end, differentiated from step T - K on

K = T is DRaFT, K < T DRaFT-K: the steps before run without a graph.

DRaFT-LV (`noise_samples` n, K = 1) differentiates the last step n times instead, each time from the finished latent
noised anew to the last timestep t, and averages; x_0 itself is sampled without a graph and is not scored:

    x_t^j = sqrt(ab_t) x_0 + sqrt(1 - ab_t) e_j,    grad J = 1/N sum_i 1/n sum_j d r(step(x_t^j)) / d theta

Where the last step adds noise, that of the chain's own last step serves all n.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.memory.knobs import Knobs
from memdiff.models.policy import Policy
from memdiff.objectives.config import DraftConfig
from memdiff.objectives.direct import DirectGradient, Experience, Walk
from memdiff.objectives.experience import Metrics, Round
from memdiff.objectives.scoring import Scored
from memdiff.pieces import Pieces
from memdiff.placement import place
from memdiff.ranks import Ranks
from memdiff.rewards.weighted import WeightedReward


class Draft:
    """Fulfils memdiff.objectives.objective.Objective."""

    def __init__(self, config: DraftConfig, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs) -> None:
        self.config, self.pieces = config, pieces
        self.direct = DirectGradient(config, reward, pieces, ranks, knobs, queries=config.noise_samples or 1)

    def collect(self, policy: Policy, round: Round) -> Experience:
        """Where the gradient begins: the same step for every image."""
        start = policy.schedule.steps - self.config.steps_of(policy.schedule.steps)
        return self.direct.collect(policy, round, [start] * len(round.batch.images))

    def updates(self, experience: Experience) -> Iterator[Experience]:
        """One."""
        return self.direct.updates(experience)

    def differentiate(self, policy: Policy, part: Experience) -> Metrics:
        """Adds the gradient of the loss to the pieces' sums."""
        if self.config.noise_samples is None:
            return self.direct.differentiate(policy, part, self.direct.through_the_chain)
        return self.direct.differentiate(policy, part, self._from_new_noise, prefix=policy.schedule.steps)

    def rehearse(self, policy: Policy, noise: Noise, images: int, prompts: Sequence[str]) -> None:
        """One micro-batch over the steps that are kept and one more."""
        go = self.direct.through_the_chain if self.config.noise_samples is None else self._from_new_noise
        start = policy.schedule.steps - 1 if self.config.steps_of(policy.schedule.steps) == 1 else None
        self.direct.rehearse(policy, noise, images, prompts, go, start=start)

    def halve(self) -> None:
        """Smaller micro-batches from here on."""
        self.direct.size.halve()

    def passes(self, policy: Policy) -> int:
        """All steps forward, the differentiated ones back."""
        steps = policy.schedule.steps
        return steps + (
            self.config.steps_of(steps) if self.config.noise_samples is None else 2 * self.config.noise_samples
        )

    def state(self) -> dict[str, list[float]]:
        """Nothing is learnt but the weights."""
        return {}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Nothing."""

    def _from_new_noise(self, walk: Walk) -> Scored:
        """`walk.x_BCHW` is x_0. The scores are the mean over the n samples, the images those of the last one."""
        policy, count = walk.policy, self.config.noise_samples
        assert count is not None
        last, noise = policy.schedule.steps - 1, walk.round.batch.noise
        ab_t = policy.schedule.alpha_bar_t[last]
        new = Noise(seed=noise.seed, stream=Stream.RENOISE, round=noise.round, shape=policy.shape)
        rows = replace(walk.rows, weight=walk.rows.weight / count)
        scores = []
        for sample in range(count):
            e_BCHW = place(new.step(rows.images, sample), policy.device)
            x_BCHW = ab_t**0.5 * walk.x_BCHW + (1 - ab_t) ** 0.5 * e_BCHW
            scored = walk.sweep.run(
                policy,
                walk.round,
                rows,
                x_BCHW,
                begin=last,
                starts=[last] * len(rows.images),
                states=walk.states,
                pull_back=self.direct.scoring.pull_back,
            )
            scores.append(scored.raw_PB)
        return replace(scored, raw_PB=torch.stack(scores).mean(dim=0))
