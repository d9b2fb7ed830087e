"""What the methods that differentiate the reward itself have in common: a round, one micro-batch after the other.

Each micro-batch runs forward, is scored, and is pulled back before the next one starts, so that one micro-batch's
graph lives at a time. Images whose gradient begins at similar steps share a micro-batch. States are fp32.

Gradients are divided by N over all ranks and multiplied by the world size, since the engine averages over ranks.

Shapes: B rows of a micro-batch, n images of this rank, N images over all ranks, P reward parts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from memdiff.chain.noise import Noise
from memdiff.chain.trajectory import Trajectory
from memdiff.memory.knobs import Knobs
from memdiff.memory.residence import decoding
from memdiff.models.policy import Policy, rollout, sample_step
from memdiff.objectives.config import DirectConfig
from memdiff.objectives.experience import Batch, Clock, Metrics, Round
from memdiff.objectives.halving import PieceSize, in_pieces
from memdiff.objectives.sampling import sample
from memdiff.objectives.scoring import Rows, Scored, Scoring, refuse_without_gradient
from memdiff.objectives.sweep import Sweep
from memdiff.objectives.tally import Tally
from memdiff.pieces import Pieces
from memdiff.placement import HOST, place
from memdiff.ranks import Ranks
from memdiff.rewards.guards import diversity
from memdiff.rewards.weighted import WeightedReward, refuse_non_finite


@dataclass
class Experience:
    """A round: where the gradient of each of this rank's images begins, and, once differentiated, its scores."""

    round: Round
    starts_n: Sequence[int]  # first differentiated step
    observed: bool = False  # whether its scores are in the reward's statistics already
    raw_PN: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    rewards_N: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class Walk:
    """One micro-batch: the state x before step `begin`, and the step at which each row's gradient begins."""

    policy: Policy
    round: Round
    rows: Rows
    x_BCHW: torch.Tensor
    begin: int
    starts: Sequence[int]
    states: Trajectory
    sweep: Sweep


GoAndReturn = Callable[[Walk], Scored]  # from the state to the loss and back


class DirectGradient:
    """A round's bookkeeping; what happens between a state and the loss is a function that each method passes in."""

    def __init__(
        self, config: DirectConfig, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs, *, queries: int
    ) -> None:
        refuse_without_gradient(reward, config.kind)
        self.config, self.reward, self.pieces, self.ranks, self.knobs = config, reward, pieces, ranks, knobs
        self.scoring = Scoring(reward, pieces, knobs, target=config.target, scale=config.scale)
        self.queries = queries  # rewards asked for, an image
        self.size = PieceSize(knobs.micro_batch)

    def collect(self, policy: Policy, round: Round, starts_n: Sequence[int]) -> Experience:
        """Only the very first round of a run with normalised parts samples here: their scale has to be known."""
        experience = Experience(round, starts_n)
        if any(not seen.count for seen in self.reward.statistics.values()):
            batch = round.batch
            with round.clock.phase("rollout"), torch.no_grad():
                x_0 = sample(policy, batch, self.knobs, storage=_wide(policy))
            with round.clock.phase("reward"), torch.no_grad(), decoding(policy, self.knobs):
                self.reward.move(self.reward.device)
                raw_Pn = self.reward.raw(_decoded(policy, x_0, self.knobs), batch.prompts)
                self._idle()
                raw_PN = self.ranks.gather(raw_Pn.T.contiguous(), batch.num_images).T
                refuse_non_finite(raw_PN, self.reward.names)
                self.reward.observe(raw_PN)
            experience.observed = True
        return experience

    def updates(self, experience: Experience) -> Iterator[Experience]:
        """One update a round, on all of it."""
        yield experience

    def differentiate(
        self, policy: Policy, experience: Experience, go: GoAndReturn, *, prefix: int | None = None
    ) -> Metrics:
        """Adds the gradient; fills in the experience's scores. `prefix`: steps before `go` takes over (None: those
        before the first differentiated one)."""
        round, starts_n, tally = experience.round, experience.starts_n, self.tally(policy)
        count_n = len(starts_n)
        order = sorted(range(count_n), key=lambda image: starts_n[image])
        group_size = even_size(count_n, max(self.knobs.rollout_batch, self.size.rows))
        last = policy.schedule.steps
        raw_nP, images_n = {}, {}
        for at in range(0, count_n, group_size):
            members = order[at : at + group_size]
            begin = min(starts_n[image] for image in members) if prefix is None else prefix
            x_mCHW = self._prefix(policy, round, members, begin)

            def walk(padded: list[int], count: int, members=members, begin=begin, x_mCHW=x_mCHW) -> None:
                chosen = [members[row] for row in padded]
                rows = self._rows(round, chosen, count)
                starts = [starts_n[image] for image in chosen]
                states = self._states(policy, len(chosen), last - min(starts))
                sweep = self.sweep(tally)
                scored = go(Walk(policy, round, rows, x_mCHW[padded], begin, starts, states, sweep))
                for row, image in enumerate(chosen[:count]):
                    raw_nP[image] = scored.raw_PB[:, row]
                    images_n[image] = place(scored.images_BCHW[row], HOST)

            size = PieceSize(even_size(len(members), self.size.rows))
            self._walk_all(members, size, walk, tally)
        raw_Pn = torch.stack([raw_nP[image] for image in range(count_n)], dim=1)
        self._conclude(policy, experience, raw_Pn.float(), [images_n[image] for image in range(count_n)])
        differentiated = sum(policy.schedule.steps - start for start in starts_n)
        total = self.ranks.sum(torch.tensor(float(differentiated), device=self.ranks.device))
        return {"last_steps_mean": float(total) / round.batch.num_images, **tally.metrics(self.ranks)}

    def _walk_all(
        self, members: Sequence[int], size: PieceSize, walk: Callable[[list[int], int], None], tally: Tally
    ) -> None:
        """All of a group, in halves where memory runs out: what a failed micro-batch had added is taken back."""
        gradients = self.pieces.gradients
        before: list[Sequence[torch.Tensor]] = []

        def and_note(padded: list[int], count: int) -> None:
            before.clear()  # where memory runs out for the copies nothing has been added yet
            if len(padded) > 1:  # on the host: one copy of what is trained, of micro-batches that could still be halved
                before.extend((gradients.copied(), tally.copied()))
            walk(padded, count)

        def take_back() -> None:
            if len(before) == 2:
                gradients.restore(before[0])
                tally.restore(before[1])

        in_pieces(range(len(members)), size, and_note, take_back=take_back)
        if size.halved:
            self.size = PieceSize(size.rows)

    def through_the_chain(self, walk: Walk) -> Scored:
        """The reverse sweep from each row's start."""
        return walk.sweep.run(
            walk.policy,
            walk.round,
            walk.rows,
            walk.x_BCHW,
            begin=walk.begin,
            starts=walk.starts,
            states=walk.states,
            pull_back=self.scoring.pull_back,
        )

    def rehearse(
        self,
        policy: Policy,
        noise: Noise,
        images: int,
        prompts: Sequence[str],
        go: GoAndReturn,
        *,
        start: int | None = None,
    ) -> None:
        """A denoising step of `images`, then a whole micro-batch from `start` on. None: from as many steps before the
        end as are kept and one more, or the last step before that at which something is trained."""
        last, texts = policy.schedule.steps, [prompts[image % len(prompts)] for image in range(images)]
        sample_step(policy, noise, place(noise.initial(range(images)), policy.device), 0, range(images), texts[:images])
        count = even_size(images, self.size.rows)
        round = Round(Batch(range(count), texts[:count], count, noise), Clock(policy.device))
        if start is None:
            latest = max(0, last - self.knobs.kept_steps - 1)
            start = next((step for step in range(latest, -1, -1) if policy.trains(step)), latest)
        rows = self._rows(round, range(count), count)
        x_BCHW = place(noise.initial(range(count)), policy.device)
        states = self._states(policy, count, last - start)
        go(Walk(policy, round, rows, x_BCHW, start, [start] * count, states, self.sweep(self.tally(policy))))

    def tally(self, policy: Policy) -> Tally:
        """Empty."""
        return Tally(policy.schedule.steps, policy.device)

    def sweep(self, tally: Tally) -> Sweep:
        """As the config and the knobs say."""
        return Sweep(self.pieces, tally, self.knobs.kept_steps, self.config.costate_clip, self.config.base_distance)

    def _prefix(self, policy: Policy, round: Round, members: Sequence[int], until: int) -> torch.Tensor:
        """The states of these images after `until` steps, without a graph."""
        batch = round.batch
        with round.clock.phase("rollout"):
            return rollout(
                policy,
                batch.noise,
                [batch.images[image] for image in members],
                [batch.prompts[image] for image in members],
                batch=min(self.knobs.rollout_batch, len(members)),
                storage=_wide(policy),
                until=until,
                on_step=round.advance,
            )

    def _rows(self, round: Round, images: Sequence[int], count: int) -> Rows:
        batch = round.batch
        weight = self.ranks.world_size / batch.num_images
        return Rows([batch.images[i] for i in images], [batch.prompts[i] for i in images], count, weight)

    def _states(self, policy: Policy, images: int, steps: int) -> Trajectory:
        return Trajectory(
            steps=max(0, steps - 1),
            images=images,
            shape=policy.shape,
            dtype=_wide(policy),
            device=policy.device,
            on_host=self.knobs.trajectory == "host",
        )

    def _conclude(
        self, policy: Policy, experience: Experience, raw_Pn: torch.Tensor, images_n: Sequence[torch.Tensor]
    ) -> None:
        """Scores over all ranks, what was lost, and how much the images differ."""
        round, device = experience.round, self.ranks.device
        num_images = round.batch.num_images
        with round.clock.phase("reward"), torch.no_grad(), decoding(policy, self.knobs):
            raw_PN = self.ranks.gather(raw_Pn.T.contiguous(), num_images).T
            rewards_N = self.reward.combine(raw_PN, self.reward.statistics)
            experience.metrics = {
                "loss": self.scoring.loss(rewards_N),
                "reward_queries": num_images * self.queries,
            }
            self.reward.move(self.reward.device)
            images_nCHW = place(torch.stack(list(images_n)), device)
            experience.metrics |= diversity(self.reward, images_nCHW, self.ranks, num_images=num_images)
            self._idle()
            if not experience.observed:
                self.reward.observe(raw_PN)
            experience.raw_PN = raw_PN
            experience.rewards_N = self.reward.combine(raw_PN, self.reward.statistics)

    def _idle(self) -> None:
        if self.knobs.rewards == "idle_off":
            self.reward.move(HOST)


def even_size(count: int, most: int) -> int:
    """The smallest batch size that needs no more batches than `most` does: little is filled up."""
    return math.ceil(count / math.ceil(count / most))


def _wide(policy: Policy) -> torch.dtype:
    return torch.promote_types(policy.dtype, torch.float32)


def _decoded(policy: Policy, x_nCHW: torch.Tensor, knobs: Knobs) -> torch.Tensor:
    return torch.cat([policy.decode(x_BCHW) for x_BCHW in x_nCHW.split(max(1, knobs.decode_batch))])
