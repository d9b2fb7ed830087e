"""REINFORCE over the whole denoising chain (Williams 1992; as DDPO's importance-sampled form, Black et al. 2023).

    grad J = 1/N sum_i A_i sum_k w_k grad log p(x_{k+1} | x_k)

What is removed from the textbook: no value function, no discount (the reward comes once, at the end), no minibatches of
images. A piece is a micro-batch of (image, step) pairs; pairs of different steps share one. Steps without a density
(sigma = 0: the last one of most pipelines) are left out of the sum, and those outside an adapter's window.

With the knob `one_pass` the first update's gradient is taken while the images are sampled (`eligibility`).

With `kl_weight` b the loss is -J plus DPOK's distance to the untrained model (Fan et al. 2023, equation 11 and
algorithm 1, on the means of the steps), over the same pairs with the same weights:

    b 1/N sum_i sum_k w_k KL(p_theta(x_{k+1} | x_k) || p_base(x_{k+1} | x_k)),    KL = |mu - mu_base|^2 / (2 sigma_k^2)

summed or averaged over C H W as `log_prob_reduction` says, so that b means the same beside either kind of log-prob.

Gradients are divided by N over all ranks and multiplied by the world size, since the engine averages over ranks.

Shapes: B pairs of one piece, n images of this rank, N images over all ranks, K steps, P reward parts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from memdiff.chain.ddim import kl_of_means, log_prob, step_sigma
from memdiff.chain.noise import Noise
from memdiff.chain.schedule import step_weights, weighted_steps
from memdiff.chain.surrogate import clipped_slope
from memdiff.chain.trajectory import Trajectory
from memdiff.errors import ConfigError
from memdiff.memory.knobs import Knobs
from memdiff.memory.residence import decoding
from memdiff.models.policy import Policy, sample_step
from memdiff.objectives.advantages import Advantages
from memdiff.objectives.config import ReinforceConfig
from memdiff.objectives.eligibility import Eligibilities, sample_with_eligibilities
from memdiff.objectives.experience import Metrics, Round
from memdiff.objectives.halving import PieceSize, in_pieces
from memdiff.objectives.pair_tally import PairSums, PairTally
from memdiff.objectives.predicted_baseline import predicted_rewards
from memdiff.objectives.reinforce_experience import Experience
from memdiff.objectives.sampling import sample
from memdiff.pieces import Gradients, Pieces, Pull, fixed_batches, widen
from memdiff.placement import HOST, place
from memdiff.ranks import Ranks
from memdiff.rewards.guards import diversity
from memdiff.rewards.weighted import WeightedReward, refuse_non_finite

Pair = tuple[int, int]  # (image of this rank, step)


class Reinforce:
    """One round: `collect`, then for each of `updates` one `differentiate`; the caller applies in between."""

    def __init__(
        self, config: ReinforceConfig, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs
    ) -> None:
        self.config, self.reward, self.pieces, self.ranks, self.knobs = config, reward, pieces, ranks, knobs
        self.size = PieceSize(knobs.micro_batch)
        self.advantages = Advantages(config)

    def collect(self, policy: Policy, round: Round) -> Experience:
        """Samples this rank's images, scores them, and computes advantages over all ranks.

        No graph is made, but for `one_pass`, which takes the images' eligibilities.
        """
        batch = round.batch
        replayed = self.config.replays(one_pass=self.knobs.one_pass)
        trajectory = Trajectory(
            steps=policy.schedule.steps,
            images=len(batch.images) if replayed else 0,
            shape=policy.shape,
            dtype=policy.dtype,
            device=policy.device,
            on_host=self.knobs.trajectory == "host",
        )
        with round.clock.phase("rollout"):
            x_0, eligibilities = self._sample(policy, round, trajectory)
        with round.clock.phase("reward"), torch.no_grad(), decoding(policy, self.knobs):
            self.reward.move(self.reward.device)
            images_nCHW = policy.decode(x_0)
            raw_Pn = self.reward.raw(images_nCHW, batch.prompts)
            differences = diversity(self.reward, images_nCHW, self.ranks, num_images=batch.num_images)
            if self.knobs.rewards == "idle_off":
                self.reward.move(HOST)
            raw_PN = self.ranks.gather(raw_Pn.T.contiguous(), batch.num_images).T
            refuse_non_finite(raw_PN, self.reward.names)
            self.reward.observe(raw_PN)
            rewards_N = self.reward.combine(raw_PN, self.reward.statistics)
        advantages_N = self.advantages.of_images(rewards_N, batch.all_prompts)
        mine = slice(batch.images.start, batch.images.stop)
        metrics: Metrics = {"advantage_std": advantages_N.std(correction=0), "reward_queries": batch.num_images}
        experience = Experience(
            round, trajectory, advantages_N[mine], raw_PN, rewards_N, metrics | differences, eligibilities=eligibilities
        )
        if self.config.baseline == "predicted_image":
            with round.clock.phase("reward"), torch.no_grad():
                by_step_KN = self._step_advantages(policy, experience, advantages_N)
            experience.step_advantages_Kn = by_step_KN[:, mine]
            variance = advantages_N.var(correction=0).clamp(min=self.config.advantage_epsilon**2)
            experience.metrics["reward_queries"] *= 1 + len(self._steps(policy))
            experience.metrics["step_variance_left"] = by_step_KN.var(dim=1, correction=0) / variance
        return experience

    def _sample(self, policy: Policy, round: Round, trajectory: Trajectory) -> tuple[torch.Tensor, list[Eligibilities]]:
        """x_0 of this rank's images, n C H W, and with `one_pass` their eligibilities."""
        store = trajectory.write if trajectory.images else _forget
        if self.knobs.one_pass:
            return sample_with_eligibilities(
                policy,
                round,
                self._weights(policy),
                self.pieces,
                batch=self._rows(policy),
                reduction=self.config.log_prob_reduction,
                storage=trajectory.dtype,
                store=store,
                on_host=self.knobs.accumulators == "host",
            )
        x_0 = sample(policy, round.batch, self.knobs, storage=trajectory.dtype, store=store, on_step=round.advance)
        return x_0, []

    def _step_advantages(self, policy: Policy, experience: Experience, advantages_N: torch.Tensor) -> torch.Tensor:
        """K N, those of steps that don't take part as without a baseline."""
        steps = self._steps(policy)
        slopes = self.reward.slopes(experience.raw_PN.mean(dim=1).tolist())
        self.reward.move(self.reward.device)
        values_SN = predicted_rewards(
            policy, experience.trajectory, experience.round, steps, self.reward, slopes, self.ranks, self.knobs
        )
        if self.knobs.rewards == "idle_off":
            self.reward.move(HOST)
        return self.advantages.of_steps(advantages_N, experience.rewards_N, values_SN, steps, policy.schedule.steps)

    def state(self) -> dict[str, list[float]]:
        """The latest rewards of each prompt."""
        return self.advantages.state()

    def restore(self, state: dict[str, list[float]]) -> None:
        """Takes them up again."""
        self.advantages.restore(state)

    def updates(self, experience: Experience) -> Iterator[Experience]:
        """The parts of one round that get an optimizer update each: all of it, `inner_updates` times."""
        for _ in range(self.config.inner_updates):
            yield experience

    def halve(self) -> None:
        """Smaller pieces from here on."""
        self.size.halve()

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
            terms_RB, pull = self._piece(policy, pieces, x_t_BCHW, x_s_BCHW, [step] * count, texts[:count])
            pull(torch.full_like(terms_RB, 1 / count))

    def passes(self, policy: Policy) -> int:
        """All steps forward, those that take part back, in every update that replays them; forward for a baseline."""
        again = self.config.inner_updates + (self.config.baseline != "none") - self.knobs.one_pass
        return policy.schedule.steps + again * len(self._steps(policy))

    def _rows(self, policy: Policy) -> int:
        """Of a piece. In one pass of several where the images of one call can have weights of their own."""
        return self.size.rows if not self.knobs.one_pass or policy.separable else 1

    @contextmanager
    def _pieces(self, policy: Policy, rows: int) -> Iterator[Pieces]:
        """What makes a piece. In one pass as when the images were sampled, so that log-probs are the same bits."""
        if not self.knobs.one_pass:
            yield self.pieces
            return
        with policy.own_weights(rows) as trained:
            into = self.pieces.into(Gradients(trained))
            yield into
        parameters = self.pieces.gradients.parameters
        summed = [s.view(rows, *p.shape).sum(dim=0) for s, p in zip(into.gradients.sums, parameters, strict=True)]
        self.pieces.gradients.add(summed, None)
        self.pieces.redone += into.redone

    def _piece(
        self,
        policy: Policy,
        pieces: Pieces,
        x_t_BCHW: torch.Tensor,
        x_s_BCHW: torch.Tensor,
        steps: Sequence[int],
        prompts: Sequence[str],
    ) -> tuple[torch.Tensor, Pull]:
        """x_t -> log p(x_s | x_t) and, where it has a weight, the KL to the base below it: R B, R = 1 or 2.

        The graph is kept: it is pulled at once.
        """
        reduction, base_BCHW = self.config.log_prob_reduction, None
        if self.config.kl_weight:
            with torch.no_grad(), policy.base():
                base_BCHW = policy.mean(x_t_BCHW, steps, prompts)

        def terms_of(x_BCHW: torch.Tensor) -> torch.Tensor:
            mean_BCHW = policy.mean(x_BCHW, steps, prompts)
            sigma_B111 = step_sigma(steps, policy.schedule, mean_BCHW)
            terms = [log_prob(widen(x_s_BCHW), mean_BCHW, sigma_B111, reduction=reduction)]
            if base_BCHW is not None:
                terms.append(kl_of_means(mean_BCHW, base_BCHW, sigma_B111, reduction=reduction))
            return torch.stack(terms)

        return pieces.vjp(terms_of, x_t_BCHW, keep=True)

    def differentiate(self, policy: Policy, experience: Experience) -> Metrics:
        """Adds the gradient of the loss, -J, to the pieces' sums; returns diagnostics over all ranks."""
        tally = PairTally(policy, self.config, self._steps(policy), experience.advantages_n.device)
        with experience.round.clock.phase("train"):
            if experience.eligibilities:
                self._weigh(policy, experience, tally)
            else:
                self._replay(policy, experience, tally)
        return tally.metrics(self.ranks)

    def _weigh(self, policy: Policy, experience: Experience, tally: PairTally) -> None:
        """The first pass where the images' eligibilities are known: -1/N sum_i A_i e_i."""
        scale = self.ranks.world_size / experience.round.batch.num_images
        steps, weights = self._steps(policy), self._weights(policy)
        weight_K1 = experience.advantages_n.new_tensor([[weights[step]] for step in steps])
        log_probs = []
        while experience.eligibilities:
            own = experience.eligibilities[0]
            advantage_b = experience.advantages_n[own.images.start : own.images.stop]
            log_prob_Kb = own.log_probs_KB[:, : len(own.images)].float()
            advantage_Kb = advantage_b.expand_as(log_prob_Kb)
            told = tally.after(
                log_prob_Kb.flatten(),
                torch.ones_like(log_prob_Kb).flatten(),
                advantage_Kb.flatten(),
                (-scale * weight_K1 * advantage_Kb).flatten(),
                advantage_Kb.flatten(),
                [step for step in steps for _ in own.images],
                log_prob_Kb.numel(),
            )
            own.add_to(self.pieces.gradients, -scale * advantage_b)
            tally.sums = told
            log_probs.append(log_prob_Kb)
            del experience.eligibilities[0]
        experience.old_log_probs = torch.cat(log_probs, dim=1).flatten()  # step by step, as `pairs` has them

    def _replay(self, policy: Policy, experience: Experience, tally: PairTally) -> None:
        """A pass over the trajectory, in pieces of pairs."""
        weights = self._weights(policy)
        pairs = self.pairs(policy, experience.trajectory.images)
        first_pass = experience.old_log_probs is None
        old_P = torch.zeros(len(pairs), device=policy.device) if first_pass else experience.old_log_probs
        assert old_P is not None

        def piece(padded: list[int], count: int) -> None:
            with self._pieces(policy, len(padded)) as pieces:
                told = take(pieces, padded, count)
            tally.sums = told
            experience.round.advance(count)

        def take(pieces: Pieces, padded: list[int], count: int) -> PairSums:
            """The gradient is added last: a piece that runs out of memory is made again, and must not count twice."""
            steps = [pairs[number][1] for number in padded]
            images = [pairs[number][0] for number in padded]
            x_t_BCHW, x_s_BCHW = experience.trajectory.transitions([pairs[number] for number in padded])
            prompts = [experience.round.batch.prompts[image] for image in images]
            terms_RB, pull = self._piece(policy, pieces, x_t_BCHW, x_s_BCHW, steps, prompts)
            log_prob_B = terms_RB[0]
            # Scored in this grouping, not taken from the rollout's: another one is off by 1e-3 in fp16.
            old_B = log_prob_B if first_pass else old_P[padded]
            advantage_B = experience.advantages_of(images, steps)
            weight_B = advantage_B.new_tensor([weights[step] for step in steps])
            weight_B[count:] = 0  # what only fills the batch up
            scale = self.ranks.world_size / experience.round.batch.num_images
            ratio_B, slope_B = clipped_slope(log_prob_B, old_B, advantage_B, self.config.ratio_clip)
            d_loss_B = -slope_B * weight_B * scale
            d_terms = [d_loss_B]
            if self.config.kl_weight:
                d_terms.append(self.config.kl_weight * weight_B * scale)
            if first_pass:
                old_P[padded[:count]] = log_prob_B[:count].detach()
            to_base_B = terms_RB[1] if self.config.kl_weight else None
            told = tally.after(log_prob_B, ratio_B, slope_B, d_loss_B, advantage_B, steps, count, to_base_B)
            pull(torch.stack(d_terms))
            return told

        if not self.knobs.one_pass:
            in_pieces(range(len(pairs)), self.size, piece)
        else:  # grouped as they were sampled
            images = experience.trajectory.images
            for start in range(0, len(pairs), images):
                for padded, count in fixed_batches(range(start, start + images), self._rows(policy)):
                    piece(padded, count)
        experience.old_log_probs = old_P


def _forget(state: int, images: range, x_BCHW: torch.Tensor) -> None:
    """In the place of a trajectory that nothing reads."""
