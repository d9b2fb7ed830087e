"""SFT-PG: a chain of few steps is fine-tuned against real images by policy gradient (Fan and Lee 2023, algorithm 1).

    IPM = E_{p_theta} f(x_0) - E_q f(x_0)                                  f: the critic, a cost
    grad_theta IPM = E sum_k (f(x_0) - v(x_k, k)) grad log p(x_{k+1} | x_k)     v: the value function, a baseline

A round makes images, takes critic steps (f up on them and down on real images, v towards f), and then updates of the
model on minibatches of (image, step) pairs. The model goes down the cost: nothing is differentiated through f.

    update        1/M sum over M pairs of w_k (f(x_0) - v(x_k, k)) log p(x_{k+1} | x_k)

(`critic_phase` has the critic's.) Pairs are drawn without replacement. Log-probs are those of the weights as they are:
there is no importance ratio, and `max_kl` bounds how far an update may be from the model that made the images,

    KL(p_old || p_theta) = |mu_old - mu|^2 / (2 sigma_k^2),    mu_old = x_{k+1} - sigma_k z_k,

z being drawn once more. States are fp32, of which that needs the last digits. The last step has a density where the
recipe gives it a std (`sampler.final_std`).

Gradients are divided by M over all ranks and multiplied by the world size, since the engine averages over ranks.

Shapes: B pairs of one piece, n images of this rank, N images over all ranks, K steps, M pairs of a minibatch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from memdiff.chain.ddim import kl_of_means, log_prob, step_sigma
from memdiff.chain.noise import Noise, Stream, draw_order
from memdiff.chain.schedule import step_weights, weighted_steps
from memdiff.chain.trajectory import Trajectory
from memdiff.errors import ConfigError, NumericError
from memdiff.memory.knobs import Knobs
from memdiff.memory.offload import decoding
from memdiff.methods.critic import Critic
from memdiff.methods.critic_phase import CriticPhase
from memdiff.methods.drawn_noise import drawn_noise
from memdiff.methods.experience import Metrics, Round
from memdiff.methods.learner import Learner
from memdiff.methods.micro_batches import PieceSize, micro_batches
from memdiff.methods.real_images import RealImages
from memdiff.methods.sampling import new_trajectory, sample_trajectory, wide
from memdiff.methods.sft_pg_config import SftPgConfig
from memdiff.methods.value_function import ValueFunction
from memdiff.models.policy import Policy, sample_step
from memdiff.rewards.guards import pixel_diversity
from memdiff.runtime.fixed_batches import fixed_batches
from memdiff.runtime.placement import place
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces, Pull

Pair = tuple[int, int]  # (image of this rank, step)


@dataclass
class Experience:
    """A round's images, how they came about and what they cost; `pairs` are those of one minibatch."""

    policy: Policy  # that made them
    round: Round
    trajectory: Trajectory
    costs_n: torch.Tensor
    raw_PN: torch.Tensor  # of no parts: there is no reward
    rewards_N: torch.Tensor  # minus the costs
    metrics: Metrics = field(default_factory=dict)
    pairs: Sequence[Pair] = ()  # this rank's
    num_pairs: int = 0  # M


class ShortcutFineTuning:
    """Critic steps, then policy-gradient minibatches of a chain of few steps."""

    def __init__(
        self,
        config: SftPgConfig,
        critic: Learner[Critic],
        value: Learner[ValueFunction],
        real: RealImages,
        pieces: Pieces,
        ranks: Ranks,
        knobs: Knobs,
    ) -> None:
        self.config, self.critic, self.value = config, critic, value
        self.pieces, self.ranks, self.knobs = pieces, ranks, knobs
        self.phase = CriticPhase(config, critic, value, real, ranks, batch=knobs.rollout_batch)
        # No more than a rank has of a minibatch, about: the rest of a piece would only fill it up.
        self.size = PieceSize(min(knobs.micro_batch, -(-config.minibatch // ranks.world_size)))
        self.rate = 1.0

    @property
    def learners(self) -> Mapping[str, Learner[Any]]:
        """Critic and value function."""
        return {"critic": self.critic, "value": self.value}

    def collect(self, policy: Policy, this_round: Round) -> Experience:
        """Samples this rank's images and trains critic and value function on them."""
        x_0, trajectory = sample_trajectory(policy, this_round, self.knobs, storage=wide(policy))
        with this_round.clock.phase("reward"), decoding(policy, self.knobs):
            with torch.no_grad():
                images_nCHW = policy.decode(x_0)
            metrics = self.phase.run(this_round, trajectory, images_nCHW, self._steps(policy))
            return self._judged(policy, this_round, trajectory, images_nCHW, metrics)

    def _judged(
        self, policy: Policy, this_round: Round, trajectory: Trajectory, images_nCHW: torch.Tensor, metrics: Metrics
    ) -> Experience:
        """What the critic, once it has learnt, makes of the round."""
        batch = this_round.batch
        with torch.no_grad():
            costs_n = self.phase.costs(images_nCHW, batch)
        costs_N = self.ranks.gather(costs_n, batch.num_images)
        if not self.pieces.are_finite([costs_N]):
            raise NumericError(
                f"the critic diverged: a cost is not finite in round {batch.noise.round}; lower "
                "method.critic.learning_rate"
            )
        metrics["diversity_pixel"] = pixel_diversity(images_nCHW, self.ranks)
        raw_PN = costs_N.new_zeros(0, batch.num_images)
        return Experience(policy, this_round, trajectory, costs_n, raw_PN, -costs_N, metrics)

    def updates(self, experience: Experience) -> Iterator[Experience]:
        """Minibatches of pairs, until the model has moved too far from the one that made the images. Collective."""
        config, batch, policy = self.config, experience.round.batch, experience.policy
        metrics, steps = experience.metrics, self._steps(policy)
        metrics |= {"kl": None, "skipped_minibatches": 0, "rate": self.rate}
        if 1 <= batch.noise.round <= config.warmup_rounds:  # a plan's round is no. 0, and shows an update
            return
        seed, this_round = batch.noise.seed, batch.noise.round
        count = batch.num_images * len(steps)
        order = draw_order(seed=seed, stream=Stream.MINIBATCHES, number=this_round, count=count)
        size = min(config.minibatch, count)
        for update in range(config.generator_updates):
            chosen = order[update * size : (update + 1) * size]
            numbers = [(number // len(steps), steps[number % len(steps)]) for number in chosen]
            start = batch.images.start
            pairs = [(image - start, step) for image, step in numbers if image in batch.images]
            part = replace(experience, pairs=pairs, num_pairs=len(chosen))
            if update > 0 and config.max_kl is not None:
                metrics["kl"] = self._divergence(part)
                if metrics["kl"] > config.max_kl:
                    self.rate /= 2
                    metrics |= {"skipped_minibatches": config.generator_updates - update, "rate": self.rate}
                    return
            yield part

    @torch.no_grad()
    def _divergence(self, part: Experience) -> float:
        """Mean KL of a step, in nats, from the model that made the images, over the minibatch's pairs. Collective."""
        policy, this_round, total = part.policy, part.round, torch.zeros((), device=part.policy.device)
        with this_round.clock.phase("train"):
            for rows, count in fixed_batches(part.pairs, self.size.rows):
                x_t_BCHW, x_s_BCHW = part.trajectory.transitions(rows)
                steps = [step for _, step in rows]
                prompts = [this_round.batch.prompts[image] for image, _ in rows]
                mean_BCHW = policy.mean(x_t_BCHW, steps, prompts)
                sigma_B111 = step_sigma(steps, policy.schedule, mean_BCHW)
                old_BCHW = x_s_BCHW - sigma_B111 * drawn_noise(this_round.batch, rows, policy.device)
                kl_B = kl_of_means(mean_BCHW, old_BCHW, sigma_B111, reduction="sum")
                total += kl_B[:count].sum()
        return float(self.ranks.sum(total)) / part.num_pairs

    def differentiate(self, policy: Policy, part: Experience) -> Metrics:
        """Adds the gradient of one minibatch's loss to the pieces' sums; returns diagnostics over all ranks."""
        sums_3 = torch.zeros(3, device=policy.device)  # of advantages, their squares, and log-probs
        weights = step_weights(policy.schedule, self.config.step_weights)
        with part.round.clock.phase("train"):
            for batch in micro_batches(part.pairs, self.size):
                batch.run(self._micro_batch, policy, part, weights, sums_3)
        mean, square, log_probs = (self.ranks.sum(sums_3) / part.num_pairs).tolist()
        return {
            "advantage_mean": mean,
            "advantage_std": max(0.0, square - mean**2) ** 0.5,
            "log_prob": log_probs,
        }

    def _micro_batch(
        self, pairs: list[Pair], count: int, policy: Policy, part: Experience, weights: Sequence[float],
        sums_3: torch.Tensor,
    ) -> None:  # fmt: skip
        """Adds the gradient of these pairs, last: a piece that runs out of memory is made again."""
        images, steps = [image for image, _ in pairs], [step for _, step in pairs]
        prompts = [part.round.batch.prompts[image] for image in images]
        x_t_BCHW, x_s_BCHW = part.trajectory.transitions(pairs)
        log_prob_B, pull = self._piece(policy, x_t_BCHW, x_s_BCHW, steps, prompts)
        with torch.no_grad():
            advantage_B = part.costs_n[images] - self.value.network(x_t_BCHW, steps)
        weight_B = advantage_B.new_tensor([weights[step] for step in steps])
        weight_B[count:] = 0  # what only fills the batch up
        meant = torch.stack([advantage_B, advantage_B.square(), log_prob_B])[:, :count].sum(dim=1)
        # The cost is to fall: the loss is + advantage log p, where a reward's would be - advantage log p.
        pull(advantage_B * weight_B * (self.ranks.world_size / part.num_pairs))
        sums_3 += meant
        part.round.advance(count)

    def _piece(
        self,
        policy: Policy,
        x_t_BCHW: torch.Tensor,
        x_s_BCHW: torch.Tensor,
        steps: Sequence[int],
        prompts: Sequence[str],
    ) -> tuple[torch.Tensor, Pull]:
        """x_t -> log p(x_s | x_t): B. The graph is kept: it is pulled at once."""

        def log_prob_of(x_BCHW: torch.Tensor) -> torch.Tensor:
            mean_BCHW = policy.mean(x_BCHW, steps, prompts)
            sigma_B111 = step_sigma(steps, policy.schedule, mean_BCHW)
            return log_prob(x_s_BCHW, mean_BCHW, sigma_B111, reduction=self.config.log_prob_reduction)

        return self.pieces.vjp(log_prob_of, x_t_BCHW, keep=True)

    def _steps(self, policy: Policy) -> tuple[int, ...]:
        """Those that are trained: with a density, inside an adapter's window."""
        weighted = weighted_steps(policy.schedule, self.config.step_weights)
        return tuple(step for step in weighted if policy.trains(step))

    def rehearse(self, policy: Policy, noise: Noise, images: int, prompts: Sequence[str]) -> None:
        """One denoising step, one piece and one of a critic step at full batch size, on noise."""
        steps, count = self._steps(policy), self.size.rows
        if not steps:
            raise ConfigError(
                "no step of this chain has a density and something to train, so there is no policy gradient; set "
                "sampler.eta to 1, or widen adapter.steps"
            )
        texts = [prompts[image % len(prompts)] for image in range(max(images, count))]
        x_BCHW = place(noise.initial(range(images)), policy.device)
        sample_step(policy, noise, x_BCHW, steps[0], range(images), texts[:images])
        x_t_BCHW, x_s_BCHW = (place(noise.step(range(count), k), policy.device) for k in (0, 1))
        log_prob_B, pull = self._piece(policy, x_t_BCHW, x_s_BCHW, [steps[0]] * count, texts[:count])
        pull(torch.full_like(log_prob_B, 1 / count))
        with decoding(policy, self.knobs):
            with torch.no_grad():
                images_BCHW = policy.decode(x_BCHW)
            trajectory = new_trajectory(policy, images, self.knobs, storage=wide(policy))
            self.phase.rehearse(trajectory, images_BCHW, noise, steps[0])

    def passes(self, policy: Policy) -> int:
        """All steps forward, and those that take part back: an upper bound, since a round may end its updates early."""
        return policy.schedule.steps + len(self._steps(policy))

    def halve(self) -> None:
        """Smaller pieces from here on."""
        self.size.halve()

    def state(self) -> dict[str, list[float]]:
        """What is left of the learning rate."""
        return {"rate": [self.rate]}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Takes it up again."""
        (self.rate,) = state["rate"]
