"""REINFORCE's learnt baseline: a value function of a state and its step (DPOK: Fan et al. 2023, section 4.3).

    A_ik = A_i - c_ik (v(x_ik, k) - mean_j v(x_jk, k)),        v fitted to A_i on the pairs of earlier rounds

It is asked before it learns from a round: v(x_ik, k) then knows nothing of what step k of image i drew, and what is
taken off changes no expectation. DPOK takes off v itself; c_ik, the least-squares coefficient of the other images
(`predicted_baseline.step_advantages`), is near 1 where v foretells the advantages and near 0 while it doesn't yet.

v learns sum_ik (v(x_ik, k) - A_i)^2 over all ranks' pairs: as many steps of Adam a round as the recipe says.

Shapes: n images of this rank, N over all ranks, S steps that take part.
"""

from collections.abc import Sequence

import torch

from memdiff.chain.trajectory import Trajectory
from memdiff.methods.learner import Learner
from memdiff.methods.reinforce_config import ReinforceConfig
from memdiff.methods.value_function import ValueFunction, new_value_function
from memdiff.models.policy import Policy
from memdiff.runtime.ranks import Ranks


class ValueBaseline:
    """The value function of a run, over the steps that take part in its gradient."""

    def __init__(self, learner: Learner[ValueFunction], ranks: Ranks, *, steps: int) -> None:
        self.learner, self.ranks, self.steps = learner, ranks, steps

    @torch.no_grad()
    def values(self, trajectory: Trajectory, steps: Sequence[int], num_images: int) -> torch.Tensor:
        """v of every rank's images at these steps: S N. Collective."""
        values_Sn = torch.stack([self._of_step(trajectory, step) for step in steps])
        return self.ranks.gather(values_Sn, num_images, dim=1)

    def learn(
        self,
        trajectory: Trajectory,
        steps: Sequence[int],
        advantages_n: torch.Tensor,
        *,
        num_images: int,
        round_number: int,
    ) -> float:
        """Fits v to this rank's advantages; returns the mean square error before the last step. Collective."""
        pairs, error = num_images * len(steps), 0.0
        for number in range(self.steps):
            total = torch.zeros((), device=advantages_n.device)
            for step in steps:
                loss = (self._of_step(trajectory, step) - advantages_n).square().sum() / pairs
                loss.backward(inputs=self.learner.parameters)
                total += loss.detach()
            error = float(self.ranks.sum(total))
            self.learner.step(f"at step {number} of round {round_number}")
        return error

    def _of_step(self, trajectory: Trajectory, step: int) -> torch.Tensor:
        """v of this rank's images at one step: n."""
        return self.learner.network(trajectory.state(step), [step] * trajectory.images)


def value_baseline(method: ReinforceConfig, policy: Policy, ranks: Ranks, seed: int) -> ValueBaseline:
    """Untrained, as a recipe describes it."""
    learner = new_value_function(method.value, policy.shape, policy.schedule.steps, ranks, seed)
    return ValueBaseline(learner, ranks, steps=method.value.steps)
