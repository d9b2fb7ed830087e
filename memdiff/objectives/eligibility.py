"""Each image's eligibility, taken while it is sampled: one forward of the network a step, not two.

    grad J = 1/N sum_i A_i e_i,        e_i = sum_k w_k grad log p(x_{k+1} | x_k)

e_i is REINFORCE's characteristic eligibility, summed over an episode (Williams 1992, theorem 2). A_i is one number an
image, known once all images are scored. So e_i is taken along the rollout, whose forward is made in any case, and
multiplied afterwards. That takes an fp32 copy of what is trained for each image, which suits an adapter, and pieces of
one image. Not where the steps of an image have advantages of their own.

Shapes: n images of this rank, K steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memdiff.chain.ddim import LogProbReduction, log_prob, step_sigma
from memdiff.chain.noise import Noise
from memdiff.models.policy import Policy, StoreState, sample_step, with_noise
from memdiff.objectives.experience import Round
from memdiff.pieces import Gradients, Pieces, widen
from memdiff.placement import place


@dataclass
class Eligibility:
    """Of one image."""

    sums: Gradients
    log_probs: list[torch.Tensor]  # of the steps that take part, in their order: each one element


def sample_with_eligibilities(
    policy: Policy,
    round: Round,
    weights: Sequence[float],
    pieces: Pieces,
    *,
    reduction: LogProbReduction,
    storage: torch.dtype,
    store: StoreState,
    on_host: bool,
) -> tuple[torch.Tensor, list[Eligibility]]:
    """The round's x_0, n C H W, as `rollout` makes them an image at a time, and e_i of each.

    `weights`: of each step; 0 where it takes no part. `storage` and `store` as in `rollout`. `on_host`: e_i wait there.
    """
    batch, finished, found = round.batch, [], []
    for row, number in enumerate(batch.images):
        own = Eligibility(Gradients(pieces.gradients.parameters, on_host=on_host), [])
        into, rows = pieces.into(own.sums), range(row, row + 1)
        x_1CHW = place(batch.noise.initial([number]).to(storage), policy.device)
        store(0, rows, x_1CHW)
        for step, weight in enumerate(weights):
            text = batch.prompts[row]
            if weight:
                step_taken = _Step(policy, batch.noise, step, number, text, reduction, storage)
                log_prob_1, pull = into.vjp(step_taken, x_1CHW, keep=True)
                pull(torch.full_like(log_prob_1, weight))
                own.log_probs.append(log_prob_1)
                x_1CHW = step_taken.x_s()
            else:
                x_1CHW = sample_step(policy, batch.noise, x_1CHW, step, [number], [text]).to(storage)
            store(step + 1, rows, x_1CHW)
            round.advance(1)
        pieces.redone += into.redone
        finished.append(x_1CHW)
        found.append(own)
    return torch.cat(finished), found


class _Step:
    """x_t -> log p(x_s | x_t) of the x_s that the step itself draws."""

    def __init__(
        self,
        policy: Policy,
        noise: Noise,
        step: int,
        image: int,
        prompt: str,
        reduction: LogProbReduction,
        storage: torch.dtype,
    ) -> None:
        self.policy, self.noise, self.step, self.image, self.prompt = policy, noise, step, image, prompt
        self.reduction: LogProbReduction = reduction
        self.storage = storage
        self._x_s: torch.Tensor | None = None

    def __call__(self, x_1CHW: torch.Tensor) -> torch.Tensor:
        mean_1CHW = self.policy.mean(x_1CHW, [self.step], [self.prompt])
        if self._x_s is None:  # a piece that is made again, at another scale, is about the same x_s
            drawn = with_noise(self.policy.schedule, self.noise, mean_1CHW.detach(), self.step, [self.image])
            self._x_s = drawn.to(self.storage)
        sigma = step_sigma([self.step], self.policy.schedule, mean_1CHW)
        return log_prob(widen(self._x_s), mean_1CHW, sigma, reduction=self.reduction)

    def x_s(self) -> torch.Tensor:
        """What it drew: 1 C H W in the stored dtype."""
        assert self._x_s is not None
        return self._x_s
