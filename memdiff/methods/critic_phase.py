"""What SFT-PG's critic and value function learn of a round, before the model is updated against them.

    1/B sum f(real) - 1/B sum f(fake) + 1/B sum_i sum_k (v(x_ik, k) - f(x_0i))^2        a step goes down

f learns to be high on the model's images and low on real ones; v learns what f says of a state's image. With
`critic_regularisation: baseline` the last term pulls f too, towards costs that can be foretold (Fan and Lee 2023, as in
their code); with `none` f is a constant in it.

A round's images are dealt out to `critic_steps` steps, `critic_passes` times over; each step has as many real images of
its own.

With `critic.noise` s the critic sees every image, made or real, through s z, z ~ N(0, I) drawn anew each time. The cost
of an image is then f~(x) = E_z f(x + s z), of which `noise_draws` draws are taken; the IPM is that of the two
distributions under this noise (Arjovsky and Bottou 2017, section 3). Without it the critic of a chain of few steps
lives on what tells made images apart at a glance: real digits have backgrounds of exactly 0, and made ones don't. Any
two distributions are as far apart then, every made image costs the same, and the policy gradient is noise.

Shapes: B images of one step, n images of this rank, K steps of the chain.
"""

from collections.abc import Sequence

import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.chain.trajectory import Trajectory
from memdiff.methods.critic import Critic
from memdiff.methods.experience import Batch, Metrics, Round
from memdiff.methods.learner import Learner
from memdiff.methods.real_images import RealImages
from memdiff.methods.sft_pg_config import SftPgConfig
from memdiff.methods.value_function import ValueFunction
from memdiff.runtime.fixed_batches import fixed_batches
from memdiff.runtime.placement import place
from memdiff.runtime.ranks import Ranks

_JUDGED = 1 << 32  # first draw of what the model is updated with: no critic step uses it


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

    def rehearse(self, trajectory: Trajectory, images_nCHW: torch.Tensor, noise: Noise, step: int) -> None:
        """A piece of a critic step, on these images as fakes and real ones alike. Leaves nothing behind."""
        rows = range(len(images_nCHW))
        seen_nCHW = self._seen(images_nCHW, noise, rows, 0)
        self._piece(trajectory, seen_nCHW, seen_nCHW, rows, len(rows), [step])
        self.critic.forget()
        self.value.forget()

    def costs(self, images_nCHW: torch.Tensor, batch: Batch) -> torch.Tensor:
        """f of this rank's images, the mean over draws where it is seen through noise, in batches of one shape: n."""
        draws = self.config.critic.noise_draws if self.config.critic.noise else 1
        costs_n, noise = images_nCHW.new_zeros(len(images_nCHW)), _noise_of(batch, images_nCHW)
        for rows, count in fixed_batches(range(len(images_nCHW)), self.batch):
            numbers = [batch.images[row] for row in rows]
            for draw in range(draws):
                seen_BCHW = self._seen(images_nCHW[rows], noise, numbers, _JUDGED + draw)
                costs_n[rows[:count]] += self.critic.network(seen_BCHW)[:count] / draws
        return costs_n

    def _seen(self, images_BCHW: torch.Tensor, noise: Noise, numbers: Sequence[int], draw: int) -> torch.Tensor:
        """What the critic gets of images of these numbers: B C H W. `draw` tells draws of one round apart."""
        std = self.config.critic.noise
        return images_BCHW + std * place(noise.step(numbers, draw), images_BCHW.device) if std else images_BCHW

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
        noise = _noise_of(batch, images_nCHW)
        for at in range(0, len(own), self.batch):
            rows = own[at : at + self.batch]
            numbers = [batch.images[row] for row in rows]
            real_BCHW = self.real.of(
                seed=batch.noise.seed,
                round_number=batch.noise.round,
                num_images=batch.num_images * passes,
                positions=[before + number for number in numbers],
            )
            draw = 2 * (number // shares)
            made_BCHW = self._seen(images_nCHW[rows], noise, numbers, draw)
            real_BCHW = self._seen(place(real_BCHW, images_nCHW.device), noise, numbers, draw + 1)
            sums_3 += self._piece(trajectory, made_BCHW, real_BCHW, rows, count, steps)
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
        made_BCHW: torch.Tensor,
        real_BCHW: torch.Tensor,
        rows: Sequence[int],
        count: int,
        steps: Sequence[int],
    ) -> torch.Tensor:
        """Adds the gradient of these rows' part of a critic step; returns their sums of the three terms.

        The value function's graph is that of one step at a time; what its loss pulls at the costs is added up first.
        """
        fake_B = self.critic.network(made_BCHW)
        real_B = self.critic.network(real_BCHW)
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


def _noise_of(batch: Batch, images_nCHW: torch.Tensor) -> Noise:
    """What the critic sees a round's images through."""
    _, channels, height, width = images_nCHW.shape
    return Noise(
        seed=batch.noise.seed,
        stream=Stream.CRITIC,
        round_number=batch.noise.round,
        shape=(channels, height, width),
    )
