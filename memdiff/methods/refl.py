"""ReFL: one late step predicts the image at once, and the reward's gradient goes through that step alone (Xu et al.
2023, algorithm 1: ImageReward).

    k_i ~ Uniform{first_step, ..., last_step},    loss = scale 1/N sum_i max(target - r(x0_theta(x_k_i, k_i)), 0)

x_k is sampled without a graph. k_i is drawn for each image, a function of (seed, round, image); the paper's code draws
one for a whole batch. What is removed: the pre-training loss beside it; `base_distance` holds the model back instead.

Shapes: B rows of a micro-batch, C H W of x_t.
"""

from collections.abc import Sequence

import torch

from memdiff.chain.noise import Stream, draw_integer
from memdiff.methods.experience import Round
from memdiff.methods.reward_gradient import Group, RewardGradient
from memdiff.methods.reward_gradient_config import ReflConfig
from memdiff.methods.scoring import Rows, Scored
from memdiff.methods.sweep import Sweep
from memdiff.models.policy import Policy, sample_step
from memdiff.runtime.placement import numbers_on


class Refl(RewardGradient[ReflConfig]):
    """Each image's gradient goes through one step of its own."""

    def starts(self, policy: Policy, this_round: Round) -> Sequence[int]:
        """The one differentiated step k_i of each image, drawn from the configured range."""
        noise = this_round.batch.noise
        return [self.step(seed=noise.seed, round_number=noise.round, image=image) for image in this_round.batch.images]

    def step(self, *, seed: int, round_number: int, image: int) -> int:
        """k of an image."""
        low, high = self.config.first_step, self.config.last_step
        return draw_integer(
            seed=seed, stream=Stream.TRUNCATION, round_number=round_number, image=image, low=low, high=high
        )

    def forward_backward(self, policy: Policy, this_round: Round, rows: Rows, group: Group, sweep: Sweep) -> Scored:
        """From the state before `group.begin` to each row's own step, to its predicted x_0, and back through that."""
        x_BCHW, steps = group.x_BCHW, list(rows.starts)
        with this_round.clock.phase("rollout"):
            for step in range(group.begin, max(steps)):
                later_B = numbers_on(x_BCHW.device, [own > step for own in steps]).view(-1, 1, 1, 1)
                further_BCHW = sample_step(policy, this_round.batch.noise, x_BCHW, step, rows.images, rows.prompts)
                x_BCHW = torch.where(later_B, further_BCHW, x_BCHW)
            x0_BCHW, pull = self.pieces.vjp(
                lambda x: policy.x0(x, steps, rows.prompts), x_BCHW, keep=self.knobs.kept_steps > 0
            )
        with this_round.clock.phase("reward"):
            scored = self.scoring.pull_back(policy, x0_BCHW, rows)
        with this_round.clock.phase("train"):
            everyone = range(rows.count)
            costate_BCHW = sweep.bounded(scored.costate_BCHW, rows)
            sweep.diagnostics.costate(steps, costate_BCHW, rows, everyone)
            pull(costate_BCHW)
            if self.config.base_distance:
                sweep.pull_to_base(policy, rows, x_BCHW, steps, everyone)
            this_round.advance(2 * rows.count)
        return scored

    def rehearsed_start(self, policy: Policy) -> int:
        """The last step of the range."""
        return self.config.last_step

    def passes(self, policy: Policy) -> int:
        """To the middle of the range forward, and one step back."""
        return (self.config.first_step + self.config.last_step) // 2 + 2
