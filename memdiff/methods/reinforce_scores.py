"""From a round's images to REINFORCE's advantages over all ranks, with a baseline by step where one is asked for.

Shapes: n images of this rank, N images over all ranks, K steps, S steps that take part, P reward parts.
"""

from collections.abc import Sequence

import torch

from memdiff.memory.knobs import Knobs
from memdiff.memory.offload import decoding, scoring
from memdiff.methods.advantages import Advantages
from memdiff.methods.predicted_baseline import predicted_rewards
from memdiff.methods.reinforce_config import ReinforceConfig
from memdiff.methods.reinforce_experience import Experience
from memdiff.methods.value_baseline import ValueBaseline
from memdiff.models.policy import Policy, decode_what_fits
from memdiff.rewards.guards import diversity
from memdiff.rewards.non_finite import settle
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.ranks import Ranks


class ReinforceScores:
    """Decodes, scores and compares a round's images. No graph is kept."""

    def __init__(
        self, config: ReinforceConfig, reward: WeightedReward, ranks: Ranks, knobs: Knobs, value: ValueBaseline | None
    ) -> None:
        self.config, self.reward, self.ranks, self.knobs, self.value = config, reward, ranks, knobs, value
        self.advantages = Advantages(config)

    def fill(self, policy: Policy, experience: Experience, x_0: torch.Tensor, steps: Sequence[int]) -> None:
        """Fills in scores and advantages of this rank's images, n C H W. `steps` are those that take part."""
        advantages_N = self._of_images(policy, experience, x_0)
        with experience.round.clock.phase("reward"):
            if self.config.baseline == "predicted_image":
                with torch.no_grad():
                    self._add_predicted_baseline(policy, experience, advantages_N, steps)
            elif self.value is not None:
                self._add_value_baseline(policy, experience, advantages_N, steps, self.value)

    def _of_images(self, policy: Policy, experience: Experience, x_0: torch.Tensor) -> torch.Tensor:
        """Fills in scores and advantages; returns those of all ranks' images: N."""
        batch, ranks = experience.round.batch, self.ranks
        with experience.round.clock.phase("reward"), torch.no_grad(), decoding(policy, self.knobs):
            with scoring(self.reward, self.knobs):
                images_nCHW = decode_what_fits(policy, x_0)
                raw_Pn = self.reward.raw(images_nCHW, batch.prompts)
                differences = diversity(self.reward, images_nCHW, ranks, num_images=batch.num_images)
            raw_PN = ranks.gather(raw_Pn, batch.num_images, dim=1)
            settled = settle(raw_PN, self.reward.parts, batch.all_prompts)
            experience.raw_PN = settled.raw_PN
            self.reward.observe(experience.raw_PN)
            experience.rewards_N = self.reward.combine(experience.raw_PN, self.reward.statistics)
        counted_advantages = self.advantages.of_images(experience.rewards_N, settled.of_counted(batch.all_prompts))
        advantages_N = settled.with_zeros(counted_advantages)
        experience.leave_out(settled, batch)
        experience.advantages_n = advantages_N[batch.images.start : batch.images.stop]
        experience.metrics = {
            "advantage_std": counted_advantages.std(correction=0), "reward_queries": batch.num_images, **differences,
            **settled.metrics,
        }  # fmt: skip
        return advantages_N

    def _add_predicted_baseline(
        self, policy: Policy, experience: Experience, advantages_N: torch.Tensor, steps: Sequence[int]
    ) -> None:
        """Advantages of each step, those of steps that don't take part as without a baseline."""
        slopes = self.reward.slopes(experience.raw_PN.mean(dim=1).tolist())
        with scoring(self.reward, self.knobs):
            values_SN = predicted_rewards(
                policy, experience.trajectory, experience.round, steps, self.reward, slopes, self.ranks, self.knobs
            )
        by_step_KN = self.advantages.of_steps(
            advantages_N, experience.rewards_N, values_SN, steps, policy.schedule.steps
        )
        experience.metrics["reward_queries"] *= 1 + len(steps)
        self._by_step(experience, advantages_N, by_step_KN)

    def _add_value_baseline(
        self,
        policy: Policy,
        experience: Experience,
        advantages_N: torch.Tensor,
        steps: Sequence[int],
        value: ValueBaseline,
    ) -> None:
        """The same with the values of what was learnt of earlier rounds; then it learns of this one."""
        batch, trajectory = experience.round.batch, experience.trajectory
        values_SN = value.values(trajectory, steps, batch.num_images)
        # Values are in the unit of the advantages already.
        by_step_KN = self.advantages.of_steps(
            advantages_N, advantages_N, values_SN, steps, policy.schedule.steps, spread=1.0
        )
        self._by_step(experience, advantages_N, by_step_KN)
        experience.metrics["value_loss"] = value.learn(
            trajectory, steps, experience.advantages_n, num_images=batch.num_images, round_number=batch.noise.round
        )

    def _by_step(self, experience: Experience, advantages_N: torch.Tensor, by_step_KN: torch.Tensor) -> None:
        """Fills in advantages that differ by step, and how much of their variance is left."""
        images = experience.round.batch.images
        experience.step_advantages_Kn = by_step_KN[:, images.start : images.stop]
        variance = advantages_N.var(correction=0)
        left_K = by_step_KN.var(dim=1, correction=0) / torch.where(variance > 0, variance, 1.0)
        experience.metrics["step_variance_left"] = left_K
