"""REINFORCE over the whole denoising chain (Williams 1992), with DDPO's ratio (Black et al. 2023) and DPOK's KL.

    grad J = 1/N sum_i A_i sum_k w_k grad log p(x_{k+1} | x_k)

What is removed from the textbook: no discount (the reward comes once, at the end), no minibatches of images, and the
value function is an option (`baseline: value`). A piece is a micro-batch of (image, step) pairs; pairs of different
steps share one. Steps without a density (sigma = 0: the last one of most pipelines) are left out of the sum, and those
outside an adapter's window.

`reinforce_one_pass` takes the first update's gradient while the images are sampled.

With `kl_weight` b the loss is -J plus DPOK's distance to the untrained model (Fan et al. 2023, equation 11 and
algorithm 1, on the means of the steps), over the same pairs with the same weights:

    b 1/N sum_i sum_k w_k KL(p_theta(x_{k+1} | x_k) || p_base(x_{k+1} | x_k)),    KL = |mu - mu_base|^2 / (2 sigma_k^2)

summed or averaged over C H W as `log_prob_reduction` says, so that b means the same beside either kind of log-prob.

Gradients are divided by N over all ranks and multiplied by the world size, since the engine averages over ranks.

Shapes: B pairs of one piece, n images of this rank, N images over all ranks, K steps, P reward parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from memdiff.chain.ddim import kl_of_means, log_prob, step_sigma
from memdiff.chain.noise import Noise
from memdiff.chain.schedule import step_weights, weighted_steps
from memdiff.chain.surrogate import clipped_slope
from memdiff.errors import ConfigError
from memdiff.memory.knobs import Knobs
from memdiff.methods.drawn_noise import drawn_noise
from memdiff.methods.experience import Metrics, Round
from memdiff.methods.learner import Learner
from memdiff.methods.micro_batches import MicroBatch, PieceSize, micro_batches
from memdiff.methods.pair_diagnostics import PairDiagnostics, PairSums
from memdiff.methods.reinforce_config import ReinforceConfig
from memdiff.methods.reinforce_experience import Experience
from memdiff.methods.reinforce_scores import ReinforceScores
from memdiff.methods.sampling import sample_trajectory, wide
from memdiff.methods.value_baseline import ValueBaseline
from memdiff.models.policy import Policy, sample_step
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.half_precision import widen
from memdiff.runtime.placement import numbers_on, place
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces, Pull

Pair = tuple[int, int]  # (image of this rank, step)


@dataclass(frozen=True)
class Replay:
    """One pass over a round's pairs."""

    pairs: Sequence[Pair]
    weights: Sequence[float]  # of each step
    diagnostics: PairDiagnostics
    old_P: torch.Tensor  # log-probs of the first pass, which writes them
    is_first: bool


class Reinforce:
    """One round: `collect`, then for each of `updates` one `differentiate`; the caller applies in between."""

    rate = 1.0

    def __init__(
        self,
        config: ReinforceConfig,
        reward: WeightedReward,
        pieces: Pieces,
        ranks: Ranks,
        knobs: Knobs,
        *,
        value: ValueBaseline | None = None,
    ) -> None:
        self.config, self.reward, self.pieces, self.ranks, self.knobs = config, reward, pieces, ranks, knobs
        self.value = value
        self.size = PieceSize(knobs.micro_batch)
        self.scores = ReinforceScores(config, reward, ranks, knobs, value)

    @property
    def learners(self) -> Mapping[str, Learner[Any]]:
        """The value function, where it is the baseline."""
        return {"value": self.value.learner} if self.value else {}

    def collect(self, policy: Policy, this_round: Round) -> Experience:
        """Samples this rank's images, scores them, and computes advantages over all ranks. No graph is kept."""
        x_0, experience = self._sampled(policy, this_round)
        self.scores.fill(policy, experience, x_0, self._steps(policy))
        return experience

    def _sampled(self, policy: Policy, this_round: Round) -> tuple[torch.Tensor, Experience]:
        """x_0 of this rank's images, n C H W, and their trajectory."""
        x_0, trajectory = sample_trajectory(policy, this_round, self.knobs, storage=self._storage(policy))
        return x_0, Experience(this_round, trajectory)

    def _storage(self, policy: Policy) -> torch.dtype:
        """Later updates read the last digits of the states; the first one draws their noise once more."""
        return wide(policy) if self.config.states_are_fp32 else policy.dtype

    def updates(self, experience: Experience) -> Iterator[Experience]:
        """The parts of one round that get an optimizer update each: all of it, `inner_updates` times."""
        for _ in range(self.config.inner_updates):
            yield experience

    def differentiate(self, policy: Policy, experience: Experience) -> Metrics:
        """Adds the gradient of the loss, -J, to the pieces' sums; returns diagnostics over all ranks."""
        diagnostics = PairDiagnostics(policy, self.config, self._steps(policy), experience.advantages_n.device)
        with experience.round.clock.phase("train"):
            self._differentiate(policy, experience, diagnostics)
        return diagnostics.metrics(self.ranks)

    def _differentiate(self, policy: Policy, experience: Experience, diagnostics: PairDiagnostics) -> None:
        """A pass over the trajectory, in pieces of pairs."""
        pairs, is_first = self.pairs(policy, experience.trajectory.images), experience.old_log_probs is None
        old_P = experience.old_log_probs
        if old_P is None:
            dtype = torch.promote_types(policy.dtype, torch.float32)  # what log-probs are in
            old_P = torch.zeros(len(pairs), dtype=dtype, device=policy.device)
        replay = Replay(pairs, self._weights(policy), diagnostics, old_P, is_first)
        for batch in self._micro_batches(policy, pairs, experience.trajectory.images):
            batch.run(self._micro_batch, policy, experience, replay)
        experience.old_log_probs = old_P

    def _micro_batches(self, policy: Policy, pairs: Sequence[Pair], images: int) -> Iterator[MicroBatch[int]]:
        """Numbers of pairs; pairs of different steps share a micro-batch."""
        return micro_batches(range(len(pairs)), self.size)

    def _micro_batch(
        self, numbers: list[int], count: int, policy: Policy, experience: Experience, replay: Replay
    ) -> None:
        """Adds the gradient of these pairs."""
        with self._pieces(policy, len(numbers)) as pieces:
            sums = self._pull(numbers, count, policy, pieces, experience, replay)
        replay.diagnostics.sums = sums
        experience.round.advance(count)

    def _pull(
        self,
        numbers: list[int],
        count: int,
        policy: Policy,
        pieces: Pieces,
        experience: Experience,
        replay: Replay,
    ) -> PairSums:
        """The gradient is added last: a piece that runs out of memory is made again, and must not count twice."""
        steps = [replay.pairs[number][1] for number in numbers]
        images = [replay.pairs[number][0] for number in numbers]
        batch, kl_weight = experience.round.batch, self.config.kl_weight
        pairs, trajectory = [replay.pairs[number] for number in numbers], experience.trajectory
        x_t_BCHW, x_s_BCHW = trajectory.transitions(pairs)
        drawn_BCHW = drawn_noise(batch, pairs, policy.device) if trajectory.is_rounded else None
        prompts = [batch.prompts[image] for image in images]
        terms_RB, pull = self._piece(policy, pieces, x_t_BCHW, x_s_BCHW, drawn_BCHW, steps, prompts)
        log_prob_B, to_base_B = terms_RB[0], terms_RB[1] if kl_weight else None
        # Scored in this grouping, not taken from the rollout's: another one is off by 1e-3 in fp16.
        number_B = numbers_on(policy.device, numbers)
        old_B = log_prob_B if replay.is_first else replay.old_P[number_B]
        advantage_B = experience.advantages_of(images, steps)
        # 0 for what only fills the batch up.
        counted = [row < count and image not in experience.left_out for row, image in enumerate(images)]
        weights = [replay.weights[step] if counts else 0.0 for step, counts in zip(steps, counted, strict=True)]
        weight_B = numbers_on(advantage_B.device, weights, dtype=advantage_B.dtype)
        scale = self.ranks.world_size / experience.num_counted
        ratio_B, slope_B = clipped_slope(log_prob_B, old_B, advantage_B, self.config.ratio_clip)
        d_loss_B = -slope_B * weight_B * scale
        d_terms = [d_loss_B, kl_weight * weight_B * scale] if kl_weight else [d_loss_B]
        if replay.is_first:
            replay.old_P[number_B[:count]] = log_prob_B[:count].detach()
        sums = replay.diagnostics.after(log_prob_B, ratio_B, slope_B, d_loss_B, advantage_B, steps, count, to_base_B)
        pull(torch.stack(d_terms))
        return sums

    def _piece(
        self,
        policy: Policy,
        pieces: Pieces,
        x_t_BCHW: torch.Tensor,
        x_s_BCHW: torch.Tensor,
        drawn_BCHW: torch.Tensor | None,
        steps: Sequence[int],
        prompts: Sequence[str],
    ) -> tuple[torch.Tensor, Pull]:
        """x_t -> log p(x_s | x_t) and, where it has a weight, the KL to the base below it: R B, R = 1 or 2.

        With `drawn_BCHW` x_s is what this noise makes of the mean as it is. The graph is kept: it is pulled at once.
        """
        reduction, base_BCHW = self.config.log_prob_reduction, None
        if self.config.kl_weight:
            with torch.no_grad(), policy.base():
                base_BCHW = policy.mean(x_t_BCHW, steps, prompts)

        def terms_of(x_BCHW: torch.Tensor) -> torch.Tensor:
            mean_BCHW = policy.mean(x_BCHW, steps, prompts)
            sigma_B111 = step_sigma(steps, policy.schedule, mean_BCHW)
            sampled_BCHW = widen(x_s_BCHW) if drawn_BCHW is None else mean_BCHW.detach() + sigma_B111 * drawn_BCHW
            terms = [log_prob(sampled_BCHW, mean_BCHW, sigma_B111, reduction=reduction)]
            if base_BCHW is not None:
                terms.append(kl_of_means(mean_BCHW, base_BCHW, sigma_B111, reduction=reduction))
            return torch.stack(terms)

        return pieces.vjp(terms_of, x_t_BCHW, keep=True)

    @contextmanager
    def _pieces(self, policy: Policy, rows: int) -> Iterator[Pieces]:
        """What makes a piece of so many rows."""
        yield self.pieces

    def _rows(self, policy: Policy) -> int:
        """How many rows a piece has now, after any halving."""
        return self.size.rows

    def pairs(self, policy: Policy, images: int) -> list[Pair]:
        """Every (image, step) that takes part, step by step."""
        return [(image, step) for step in self._steps(policy) for image in range(images)]

    def _steps(self, policy: Policy) -> tuple[int, ...]:
        """Those that take part."""
        weighted = weighted_steps(policy.schedule, self.config.step_weights)
        return tuple(step for step in weighted if policy.trains(step))

    def _weights(self, policy: Policy) -> list[float]:
        """Of every step; 0 where it takes no part."""
        weights, taking_part = step_weights(policy.schedule, self.config.step_weights), self._steps(policy)
        return [weight if step in taking_part else 0.0 for step, weight in enumerate(weights)]

    def rehearse(self, policy: Policy, noise: Noise, images: int, prompts: Sequence[str]) -> None:
        """One denoising step and one piece at full batch size, on noise. Adds to the sums; the caller clears them."""
        steps = self._steps(policy)
        if not steps:
            raise ConfigError(
                "no step of this chain has a density, a weight and something to train, so there is no policy gradient; "
                "set sampler.eta to 1, or widen adapter.steps"
            )
        step, count = steps[0], self._rows(policy)
        texts = [prompts[image % len(prompts)] for image in range(max(images, count))]
        x_BCHW = place(noise.initial(range(images)), policy.device)
        sample_step(policy, noise, x_BCHW, step, range(images), texts[:images])
        x_t_BCHW, x_s_BCHW = (noise.step(range(count), k).to(policy.device, policy.dtype) for k in (0, 1))
        with self._pieces(policy, count) as pieces:
            terms_RB, pull = self._piece(policy, pieces, x_t_BCHW, x_s_BCHW, None, [step] * count, texts[:count])
            pull(torch.full_like(terms_RB, 1 / count))

    def passes(self, policy: Policy) -> int:
        """All steps forward, those that take part back, in every update that replays them; forward for a baseline."""
        again = self.config.inner_updates + (self.config.baseline == "predicted_image")
        return policy.schedule.steps + again * len(self._steps(policy))

    def halve(self) -> None:
        """Smaller pieces from here on."""
        self.size.halve()

    def state(self) -> dict[str, list[float]]:
        """The latest rewards of each prompt."""
        return self.scores.advantages.state()

    def restore(self, state: dict[str, list[float]]) -> None:
        """Takes them up again."""
        self.scores.advantages.restore(state)
