"""REINFORCE whose gradient is taken while the images are sampled: one forward of the network a step, not two.

    grad J = 1/N sum_i A_i e_i,        e_i = sum_k w_k grad log p(x_{k+1} | x_k)

The images' eligibilities e_i (`eligibility`) come with the rollout and are weighed once the rewards are known. Later
updates of the round replay the trajectory in the same pieces, so that log-probs are the same bits.

Shapes: b images of one batch, n images of this rank, K steps that take part.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from memdiff.chain.trajectory import Trajectory
from memdiff.errors import OutOfMemoryError
from memdiff.methods.eligibility import Eligibilities, sample_with_eligibilities
from memdiff.methods.experience import Round
from memdiff.methods.micro_batches import MicroBatch, fits
from memdiff.methods.pair_diagnostics import PairDiagnostics
from memdiff.methods.reinforce import Pair, Reinforce
from memdiff.methods.reinforce_experience import Experience
from memdiff.methods.sampling import new_trajectory
from memdiff.models.policy import Policy
from memdiff.runtime.fixed_batches import fixed_batches
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.placement import numbers_on
from memdiff.runtime.vjp import Pieces


class ReinforceOnePass(Reinforce):
    """For one number an image as its advantage, and no term besides: no baseline by step, no KL."""

    def _sampled(self, policy: Policy, this_round: Round) -> tuple[torch.Tensor, Experience]:
        """x_0 and the eligibilities of this rank's images; the trajectory where a later update replays it."""
        images = len(this_round.batch.images) if self._replays else 0
        trajectory = new_trajectory(policy, images, self.knobs, storage=self._storage(policy))
        made: list[tuple[torch.Tensor, list[Eligibilities]]] = []
        with this_round.clock.phase("rollout"):
            while not fits(self._sample, policy, this_round, trajectory, made):
                # All of it again: a later update replays images in the groups that they were sampled in.
                self.size.rows = self._rows(policy)
                self.size.halve()
        x_0, eligibilities = made.pop()
        return x_0, Experience(this_round, trajectory, eligibilities=eligibilities)

    @property
    def _replays(self) -> bool:
        """Whether a later update reads the trajectory."""
        return self.config.replays(one_pass=True)

    def _sample(
        self,
        policy: Policy,
        this_round: Round,
        trajectory: Trajectory,
        made: list[tuple[torch.Tensor, list[Eligibilities]]],
    ) -> None:
        """Adds x_0 and eligibilities to `made`."""
        made.append(
            sample_with_eligibilities(
                policy,
                this_round,
                self._weights(policy),
                self.pieces,
                batch=self._rows(policy),
                reduction=self.config.log_prob_reduction,
                storage=trajectory.dtype,
                store=trajectory.write if self._replays else _forget,
                on_host=self.knobs.accumulators == "host",
            )
        )

    def _differentiate(self, policy: Policy, experience: Experience, diagnostics: PairDiagnostics) -> None:
        if experience.eligibilities:
            self._weigh(policy, experience, diagnostics)
        else:
            super()._differentiate(policy, experience, diagnostics)

    def _weigh(self, policy: Policy, experience: Experience, diagnostics: PairDiagnostics) -> None:
        """The first pass, whose gradients are known: -1/N sum_i A_i e_i."""
        scale = self.ranks.world_size / experience.num_counted
        steps, weights = self._steps(policy), self._weights(policy)
        like = experience.advantages_n
        weight_K1 = numbers_on(like.device, [weights[step] for step in steps], dtype=like.dtype)[:, None]
        log_probs = []
        while experience.eligibilities:
            own = experience.eligibilities[0]
            advantage_b = experience.advantages_n[own.images.start : own.images.stop]
            log_prob_Kb = own.log_probs_KB[:, : len(own.images)].float()
            advantage_Kb = advantage_b.expand_as(log_prob_Kb)
            sums = diagnostics.after(
                log_prob_Kb.flatten(),
                torch.ones_like(log_prob_Kb).flatten(),
                advantage_Kb.flatten(),
                (-scale * weight_K1 * advantage_Kb).flatten(),
                advantage_Kb.flatten(),
                [step for step in steps for _ in own.images],
                log_prob_Kb.numel(),
            )
            own.add_to(self.pieces.gradients, -scale * advantage_b)
            diagnostics.sums = sums
            log_probs.append(log_prob_Kb)
            del experience.eligibilities[0]
        experience.old_log_probs = torch.cat(log_probs, dim=1).flatten()  # step by step, as `pairs` has them

    def _micro_batches(self, policy: Policy, pairs: Sequence[Pair], images: int) -> Iterator[MicroBatch[int]]:
        """Grouped as they were sampled, so that none can be halved."""
        for start in range(0, len(pairs), images):
            for rows, count in fixed_batches(range(start, start + images), self._rows(policy)):
                batch = MicroBatch(rows, count)
                yield batch
                if not batch.done:
                    raise OutOfMemoryError(f"a piece of {len(rows)} images sampled in one pass does not fit again")

    @contextmanager
    def _pieces(self, policy: Policy, rows: int) -> Iterator[Pieces]:
        """As when the images were sampled."""
        with policy.per_image_weights(rows) as trained:
            into = self.pieces.into(Gradients(trained))
            yield into
        parameters = self.pieces.gradients.parameters
        summed = [s.view(rows, *p.shape).sum(dim=0) for s, p in zip(into.gradients.sums, parameters, strict=True)]
        self.pieces.gradients.add(summed, None)

    def _rows(self, policy: Policy) -> int:
        """Several where the images of one call can have weights of their own."""
        return self.size.rows if policy.separable else 1

    def passes(self, policy: Policy) -> int:
        """The first update's steps are those of the rollout."""
        return super().passes(policy) - len(self._steps(policy))


def _forget(state: int, images: range, x_BCHW: torch.Tensor) -> None:
    """In the place of a trajectory that nothing reads."""
