"""What SFT-PG's critic and value function learn of a round, before the model is updated against them.

    1/B sum f(real) - 1/B sum f(fake) + 1/B sum_i sum_k (v(x_ik, k) - f(x_0i))^2        a step goes down

f learns to be high on the model's images and low on real ones; v learns what f says of a state's image. With
`critic_regularisation: baseline` the last term pulls f too, towards costs that can be foretold (Fan and Lee 2023, as in
their code); with `none` f is a constant in it.

A round's images are dealt out to `critic_steps` steps, `critic_passes` times over; each step has as many real images of
its own.

Shapes: B images of one step, n images of this rank, K steps of the chain.
"""

from collections.abc import Sequence

import torch

from memdiff.chain.trajectory import Trajectory
from memdiff.methods.critic import Critic
from memdiff.methods.experience import Metrics, Round
from memdiff.methods.learner import Learner
from memdiff.methods.real_images import RealImages
from memdiff.methods.sft_pg_config import SftPgConfig
from memdiff.methods.value_function import ValueFunction
from memdiff.runtime.placement import place
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import fixed_batches


class CriticPhase:
    """Critic, value function and real images, in pieces of at most `batch` images."""

    def __init__(
        self,
        config: SftPgConfig,
        critic: Learner[Critic],
        value: Learner[ValueFunction],
        real: RealImages,
        ranks: Ranks,
        *,
        batch: int,
    ) -> None:
        self.config, self.critic, self.value, self.real = config, critic, value, real
        self.ranks, self.batch = ranks, batch

    def run(
        self, this_round: Round, trajectory: Trajectory, images_nCHW: torch.Tensor, steps: Sequence[int]
    ) -> Metrics:
        """All critic steps of a round; returns what the last one saw. `steps`: those that v is asked at. Collective."""
        metrics: Metrics = {}
        for number in range(self.config.critic_steps * self.config.critic_passes):
            metrics = self._step(number, this_round, trajectory, images_nCHW, steps)
        return metrics

    def rehearse(self, trajectory: Trajectory, images_nCHW: torch.Tensor, step: int) -> None:
        """A piece of a critic step, on these images as fakes and real ones alike. Leaves nothing behind."""
        rows = range(len(images_nCHW))
        self._piece(trajectory, images_nCHW, images_nCHW, rows, len(rows), [step])
        self.critic.forget()
        self.value.forget()

    def costs(self, images_nCHW: torch.Tensor) -> torch.Tensor:
        """f of this rank's images, in batches of one shape: n."""
        costs = [
            self.critic.network(images_nCHW[rows])[:count]
            for rows, count in fixed_batches(range(len(images_nCHW)), self.batch)
        ]
        return torch.cat(costs) if costs else images_nCHW.new_zeros(0)

    def _step(
        self, number: int, this_round: Round, trajectory: Trajectory, images_nCHW: torch.Tensor, steps: Sequence[int]
    ) -> Metrics:
        """One step of critic and value function on this step's share of the round. Collective."""
        batch, shares, passes = this_round.batch, self.config.critic_steps, self.config.critic_passes
        share = number % shares
        count = len(range(share, batch.num_images, shares))
        own = [image - batch.images.start for image in batch.images if image % shares == share]
        before = batch.num_images * (number // shares)  # real images that earlier passes saw
        sums_3 = torch.zeros(3, device=images_nCHW.device)  # of f on fakes and real images, and of v's loss
        for at in range(0, len(own), self.batch):
            rows = own[at : at + self.batch]
            real_BCHW = self.real.of(
                seed=batch.noise.seed,
                round_number=batch.noise.round,
                num_images=batch.num_images * passes,
                positions=[before + batch.images.start + row for row in rows],
            )
            sums_3 += self._piece(trajectory, images_nCHW, real_BCHW, rows, count, steps)
        when = f"at critic step {number} of round {batch.noise.round}"
        norms = {
            f"{name}_grad_norm": learner.step(when)
            for name, learner in (("critic", self.critic), ("value", self.value))
        }
        fake, real, value = (self.ranks.sum(sums_3) / count).tolist()
        return {"ipm": fake - real, "critic_fake": fake, "critic_real": real, "value_loss": value, **norms}

    def _piece(
        self,
        trajectory: Trajectory,
        images_nCHW: torch.Tensor,
        real_BCHW: torch.Tensor,
        rows: Sequence[int],
        count: int,
        steps: Sequence[int],
    ) -> torch.Tensor:
        """Adds the gradient of these rows' part of a critic step; returns their sums of the three terms.

        The value function's graph is that of one step at a time; what its loss pulls at the costs is added up first.
        """
        fake_B = self.critic.network(images_nCHW[list(rows)])
        real_B = self.critic.network(place(real_BCHW, images_nCHW.device))
        costs_B, errors = fake_B.detach().requires_grad_(), fake_B.new_zeros(())
        costs_B.grad = torch.full_like(costs_B, -1 / count)
        regularised = [costs_B] if self.config.critic_regularisation == "baseline" else []
        for step in steps:
            x_BCHW, _ = trajectory.transitions([(row, step) for row in rows])
            error = (self.value.network(x_BCHW, [step] * len(rows)) - costs_B).square().sum()
            (error / count).backward(inputs=[*self.value.parameters, *regularised])
            errors += error.detach()
        pulled = [costs_B.grad, torch.full_like(real_B, 1 / count)]
        torch.autograd.backward([fake_B, real_B], pulled, inputs=self.critic.parameters)
        return torch.stack([fake_B.detach().sum(), real_B.detach().sum(), errors])
