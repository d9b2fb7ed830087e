"""Each image's eligibility, taken while it is sampled: one forward of the network a step, not two.

    grad J = 1/N sum_i A_i e_i,        e_i = sum_k w_k grad log p(x_{k+1} | x_k)

e_i is REINFORCE's characteristic eligibility, summed over an episode (Williams 1992, theorem 2). A_i is one number an
image, known once all images are scored. So e_i is taken along the rollout, whose forward is made in any case, and
multiplied afterwards. That takes an fp32 copy of what is trained for each image, which suits an adapter. Not where the
steps of an image have advantages of their own.

Shapes: B rows of one batch, n images of this rank, K steps that take part, P of a parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memdiff.chain.ddim import LogProbReduction, log_prob, step_sigma
from memdiff.chain.noise import Noise
from memdiff.methods.experience import Round
from memdiff.models.policy import Policy, StoreState, sample_step, with_noise
from memdiff.runtime.fixed_batches import fixed_batches
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.placement import place, upload
from memdiff.runtime.vjp import Pieces


@dataclass
class Eligibilities:
    """Of the images of one batch."""

    images: range  # of this rank
    sums: Gradients  # each B P; P alone where B is 1
    log_probs_KB: torch.Tensor

    def add_to(self, gradients: Gradients, weights_b: torch.Tensor) -> None:
        """Adds sum_i weights_i e_i over the images, b of them, one parameter at a time, and all of them.

        Where memory for one parameter's weighed sum runs out its images are added one by one, which takes none.
        """
        batch, first = self.log_probs_KB.shape[1], self.sums.sums[0]
        weights_B = weights_b.new_zeros(batch)
        weights_B[: len(self.images)] = weights_b
        weights_B = place(weights_B.to(first.dtype), first.device)
        for total, own in zip(gradients.sums, self.sums.sums, strict=True):
            own_BP = own.view(batch, -1)
            if not _added(total, weights_B, own_BP):
                # What only fills the batch up is left out.
                for weight, own_P in zip(weights_b.tolist(), own_BP, strict=False):
                    total.add_(place(own_P.view_as(total), total.device), alpha=weight)


def _added(total: torch.Tensor, weights_B: torch.Tensor, own_BP: torch.Tensor) -> bool:
    """False where memory ran out, with `total` as it was."""
    try:
        weighed = torch.tensordot(weights_B, own_BP, dims=1)
        total.add_(place(weighed.view_as(total), total.device))
    except torch.OutOfMemoryError:
        return False
    return True


def sample_with_eligibilities(
    policy: Policy,
    this_round: Round,
    weights: Sequence[float],
    pieces: Pieces,
    *,
    batch: int,
    reduction: LogProbReduction,
    storage: torch.dtype,
    store: StoreState,
    on_host: bool,
) -> tuple[torch.Tensor, list[Eligibilities]]:
    """The round's x_0, n C H W, as `rollout` makes them in batches of `batch`, and their e_i.

    `weights`: of each step; 0 where it takes no part. `storage` and `store` as in `rollout`. `on_host`: e_i wait there.
    """
    finished, eligibilities = [], []
    for padded, count in fixed_batches(range(len(this_round.batch.images)), batch):
        rows = range(padded[0], padded[0] + count)
        with policy.per_image_weights(batch) as trained:
            into = pieces.into(Gradients(trained, on_host=on_host))
            sampled = _Sampled(policy, this_round, weights, into, reduction, storage, store)
            x_BCHW, log_probs_KB = into.together(sampled, padded, rows)
        finished.append(x_BCHW[:count])
        eligibilities.append(Eligibilities(rows, into.gradients, log_probs_KB))
    return torch.cat(finished), eligibilities


@dataclass(frozen=True)
class _Sampled:
    """One batch from noise to x_0: its eligibilities are added to the sums of `into`."""

    policy: Policy
    this_round: Round
    weights: Sequence[float]
    into: Pieces
    reduction: LogProbReduction
    storage: torch.dtype
    store: StoreState

    def __call__(self, padded: Sequence[int], rows: range) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_0: B C H W, log-probs: K B). `padded` are numbers of this rank's images, `rows` the valid ones."""
        policy, batch, count, log_probs = self.policy, self.this_round.batch, len(rows), []
        numbers, texts = [batch.images[row] for row in padded], [batch.prompts[row] for row in padded]
        x_BCHW = upload(batch.noise.initial(numbers).to(self.storage), policy.device)
        self.store(0, rows, x_BCHW[:count])
        for step, weight in enumerate(self.weights):
            if weight:
                drawn = _Step(policy, batch.noise, step, numbers, texts, self.reduction, self.storage)
                log_prob_B, pull = self.into.vjp(drawn, x_BCHW, keep=True)
                d_log_prob_B = torch.full_like(log_prob_B, weight)
                d_log_prob_B[count:] = 0  # what only fills the batch up
                pull(d_log_prob_B)
                log_probs.append(log_prob_B)
                x_BCHW = drawn.x_s()
            else:
                x_BCHW = sample_step(policy, batch.noise, x_BCHW, step, numbers, texts).to(self.storage)
            self.store(step + 1, rows, x_BCHW[:count])
            self.this_round.advance(count)
        return x_BCHW, torch.stack(log_probs)


class _Step:
    """x_t -> log p(x_s | x_t) of the x_s that the step itself draws: B."""

    def __init__(
        self,
        policy: Policy,
        noise: Noise,
        step: int,
        images: Sequence[int],
        prompts: Sequence[str],
        reduction: LogProbReduction,
        storage: torch.dtype,
    ) -> None:
        self.policy, self.noise, self.step, self.images, self.prompts = policy, noise, step, images, prompts
        self.reduction: LogProbReduction = reduction
        self.storage = storage
        self._x_s: torch.Tensor | None = None

    def __call__(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        steps = [self.step] * len(self.images)
        mean_BCHW = self.policy.mean(x_BCHW, steps, self.prompts)
        if self._x_s is None:  # a piece that is made again, at another scale, is about the same x_s
            self._x_s = with_noise(self.policy.schedule, self.noise, mean_BCHW.detach(), self.step, self.images)
        sigma_B111 = step_sigma(steps, self.policy.schedule, mean_BCHW)
        # As it was drawn, not as it is stored (`drawn_noise`).
        return log_prob(self._x_s, mean_BCHW, sigma_B111, reduction=self.reduction)

    def x_s(self) -> torch.Tensor:
        """What it drew: B C H W in the stored dtype."""
        assert self._x_s is not None
        return self._x_s.to(self.storage)
