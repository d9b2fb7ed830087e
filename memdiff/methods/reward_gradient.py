"""What the methods that differentiate the reward itself have in common: a round, one micro-batch after the other.

A method says where each image's gradient begins (`starts`), and may say what lies between a state and the loss
(`forward_backward`; else the chain's remaining steps). Each micro-batch runs forward, is scored, and is pulled back
before the next one starts, so that one micro-batch's graph lives at a time. Images whose gradient begins at similar
steps share a micro-batch. States are fp32.

Gradients are divided by N over all ranks and multiplied by the world size, since the engine averages over ranks.

Shapes: B rows of a micro-batch, n images of this rank, N images over all ranks, P reward parts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch

from memdiff.chain.noise import Noise
from memdiff.memory.knobs import Knobs
from memdiff.memory.offload import decoding, scoring
from memdiff.methods.diagnostics import Diagnostics
from memdiff.methods.experience import Batch, Clock, Metrics, Round
from memdiff.methods.learner import Learner
from memdiff.methods.micro_batches import PieceSize, micro_batches
from memdiff.methods.reward_gradient_config import DirectConfig
from memdiff.methods.sampling import sample, wide
from memdiff.methods.scoring import Rows, Scored, Scoring, refuse_without_gradient
from memdiff.methods.sweep import Sweep
from memdiff.models.policy import Policy, decode_what_fits, rollout, sample_step
from memdiff.rewards.guards import diversity
from memdiff.rewards.weighted_sum import WeightedReward, refuse_non_finite
from memdiff.runtime.placement import download, host_buffer, numbers_on, place, settle
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces

C = TypeVar("C", bound=DirectConfig)


@dataclass
class GradientRound:
    """A round: where the gradient of each of this rank's images begins, and, once differentiated, its scores."""

    round: Round
    starts_n: Sequence[int]  # first differentiated step
    observed: bool = False  # whether its scores are in the reward's statistics already
    raw_nP: dict[int, torch.Tensor] = field(default_factory=dict)  # by image of this rank, as they are scored
    images_nCHW: dict[int, torch.Tensor] = field(default_factory=dict)  # on the host, once the device is settled
    raw_PN: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    rewards_N: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Images that were denoised together as far as no gradient goes."""

    members: Sequence[int]  # of this rank's images
    begin: int
    x_BCHW: torch.Tensor  # the state before step `begin`


class RewardGradient(ABC, Generic[C]):
    """Differentiates the reward itself, back through each image's steps from its start on."""

    queries = 1  # rewards asked for, an image
    rate, learners = 1.0, MappingProxyType[str, Learner[Any]]({})

    def __init__(self, config: C, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs) -> None:
        refuse_without_gradient(reward, config.kind)
        self.config, self.reward, self.pieces, self.ranks, self.knobs = config, reward, pieces, ranks, knobs
        self.scoring = Scoring(reward, pieces, knobs, target=config.target, scale=config.scale)
        self.size = PieceSize(knobs.micro_batch)

    @abstractmethod
    def starts(self, policy: Policy, this_round: Round) -> Sequence[int]:
        """The first differentiated step of each of this rank's images: n."""
        ...

    def begin(self, policy: Policy, starts: Sequence[int]) -> int:
        """Steps of these images that are denoised without a graph, at most the first start."""
        return min(starts)

    def forward_backward(self, policy: Policy, this_round: Round, rows: Rows, group: Group, sweep: Sweep) -> Scored:
        """From the rows' state before step `group.begin` to the loss, and back: adds the gradient."""
        return sweep.run(policy, this_round, rows, group.x_BCHW, begin=group.begin, pull_back=self.scoring.pull_back)

    @abstractmethod
    def passes(self, policy: Policy) -> int:
        """Image-steps that a round takes for each image."""
        ...

    def collect(self, policy: Policy, this_round: Round) -> GradientRound:
        """Only the very first round of a run with normalised parts samples here: their scale has to be known."""
        experience = GradientRound(this_round, self.starts(policy, this_round))
        if any(not seen.count for seen in self.reward.statistics.values()):
            batch = this_round.batch
            with this_round.clock.phase("rollout"), torch.no_grad():
                x_0 = sample(policy, batch, self.knobs, storage=wide(policy))
            with this_round.clock.phase("reward"), torch.no_grad(), decoding(policy, self.knobs):
                with scoring(self.reward, self.knobs):
                    images = [decode_what_fits(policy, x_BCHW) for x_BCHW in x_0.split(max(1, self.knobs.decode_batch))]
                    raw_Pn = self.reward.raw(torch.cat(images), batch.prompts)
                raw_PN = self.ranks.gather(raw_Pn, batch.num_images, dim=1)
                refuse_non_finite(raw_PN, self.reward.names)
                self.reward.observe(raw_PN)
            experience.observed = True
        return experience

    def updates(self, experience: GradientRound) -> Iterator[GradientRound]:
        """One update a round, on all of it."""
        yield experience

    def differentiate(self, policy: Policy, experience: GradientRound) -> Metrics:
        """Adds the gradient of the loss to the pieces' sums; fills in the experience's scores."""
        this_round, starts_n = experience.round, experience.starts_n
        diagnostics = Diagnostics(policy.schedule.steps, policy.device)
        sweep = self._sweep(diagnostics)
        order = sorted(range(len(starts_n)), key=lambda image: starts_n[image])
        group_size = even_size(len(order), max(self.knobs.rollout_batch, self.size.rows))
        for at in range(0, len(order), group_size):
            group = self._denoised(policy, experience, order[at : at + group_size])
            size = PieceSize(even_size(len(group.members), self.size.rows))
            for batch in micro_batches(range(len(group.members)), size):
                batch.run(self._micro_batch, policy, experience, group, sweep, undo=[self.pieces.gradients])
            if size.halved:
                self.size = PieceSize(size.rows)
        self._conclude(policy, experience)
        differentiated = sum(policy.schedule.steps - start for start in starts_n)
        total = self.ranks.sum(numbers_on(self.ranks.device, [float(differentiated)]))
        return {"last_steps_mean": float(total) / this_round.batch.num_images, **diagnostics.metrics(self.ranks)}

    def _denoised(self, policy: Policy, experience: GradientRound, members: Sequence[int]) -> Group:
        """These images as far as no gradient goes."""
        this_round, batch = experience.round, experience.round.batch
        begin = self.begin(policy, [experience.starts_n[image] for image in members])
        with this_round.clock.phase("rollout"):
            x_BCHW = rollout(
                policy,
                batch.noise,
                [batch.images[image] for image in members],
                [batch.prompts[image] for image in members],
                batch=min(self.knobs.rollout_batch, len(members)),
                storage=wide(policy),
                until=begin,
                on_step=this_round.advance,
            )
        return Group(members, begin, x_BCHW)

    def _micro_batch(
        self, numbers: list[int], count: int, policy: Policy, experience: GradientRound, group: Group, sweep: Sweep
    ) -> None:
        """Rows of a group, by their numbers in it."""
        images = [group.members[number] for number in numbers]
        rows = self._rows(experience.round, images, count, [experience.starts_n[image] for image in images])
        theirs = Group(images, group.begin, group.x_BCHW[numbers_on(policy.device, numbers)])
        work = (policy, experience, images, rows, theirs, sweep)
        self.pieces.together(self._differentiated, *work, undo=[sweep.diagnostics])

    def _differentiated(
        self,
        policy: Policy,
        experience: GradientRound,
        images: Sequence[int],
        rows: Rows,
        group: Group,
        sweep: Sweep,
    ) -> None:
        """Adds the gradient of these rows, and keeps their scores and images."""
        scored = self.forward_backward(policy, experience.round, rows, group, sweep)
        for row, image in enumerate(images[: rows.count]):
            experience.raw_nP[image] = scored.raw_PB[:, row]
            image_CHW = scored.images_BCHW[row]
            waiting_CHW = host_buffer(tuple(image_CHW.shape), image_CHW.dtype, policy.device)
            download(image_CHW, waiting_CHW)
            experience.images_nCHW[image] = waiting_CHW

    def _conclude(self, policy: Policy, experience: GradientRound) -> None:
        """Scores over all ranks, what was lost, and how much the images differ."""
        this_round, num_images = experience.round, experience.round.batch.num_images
        mine = range(len(experience.starts_n))
        raw_Pn = torch.stack([experience.raw_nP[image] for image in mine], dim=1).float()
        with this_round.clock.phase("reward"), torch.no_grad(), decoding(policy, self.knobs):
            raw_PN = self.ranks.gather(raw_Pn, num_images, dim=1)
            rewards_N = self.reward.combine(raw_PN, self.reward.statistics)
            experience.metrics = {
                "loss": self.scoring.loss(rewards_N),
                "reward_queries": num_images * self.queries,
            }
            with scoring(self.reward, self.knobs):
                settle(policy.device)
                images_nCHW = place(torch.stack([experience.images_nCHW[image] for image in mine]), self.ranks.device)
                experience.metrics |= diversity(self.reward, images_nCHW, self.ranks, num_images=num_images)
            if not experience.observed:
                self.reward.observe(raw_PN)
            experience.raw_PN = raw_PN
            experience.rewards_N = self.reward.combine(raw_PN, self.reward.statistics)
        experience.raw_nP.clear()
        experience.images_nCHW.clear()

    def rehearse(self, policy: Policy, noise: Noise, images: int, prompts: Sequence[str]) -> None:
        """A denoising step of `images`, then a whole micro-batch from `rehearsed_start` on."""
        texts = [prompts[image % len(prompts)] for image in range(images)]
        sample_step(policy, noise, place(noise.initial(range(images)), policy.device), 0, range(images), texts[:images])
        count, start = even_size(images, self.size.rows), self.rehearsed_start(policy)
        this_round = Round(Batch(range(count), texts[:count], count, noise), Clock(policy.device))
        rows = self._rows(this_round, range(count), count, [start] * count)
        group = Group(range(count), start, place(noise.initial(range(count)), policy.device))
        self.forward_backward(
            policy, this_round, rows, group, self._sweep(Diagnostics(policy.schedule.steps, policy.device))
        )

    def rehearsed_start(self, policy: Policy) -> int:
        """As many steps before the end as are kept and one more, or the last before that where something is trained."""
        latest = max(0, policy.schedule.steps - self.knobs.kept_steps - 1)
        return next((step for step in range(latest, -1, -1) if policy.trains(step)), latest)

    def halve(self) -> None:
        """Smaller micro-batches from here on."""
        self.size.halve()

    def state(self) -> dict[str, list[float]]:
        """Nothing is learnt but the weights."""
        return {}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Ignores the state: nothing is learnt from earlier rounds."""

    def _sweep(self, diagnostics: Diagnostics) -> Sweep:
        return Sweep(
            self.pieces,
            diagnostics,
            kept_steps=self.knobs.kept_steps,
            costate_clip=self.config.costate_clip,
            base_distance=self.config.base_distance,
            states_on_host=self.knobs.trajectory == "host",
        )

    def _rows(self, this_round: Round, images: Sequence[int], count: int, starts: Sequence[int]) -> Rows:
        batch = this_round.batch
        weight = self.ranks.world_size / batch.num_images
        return Rows([batch.images[i] for i in images], [batch.prompts[i] for i in images], starts, count, weight)


def even_size(count: int, most: int) -> int:
    """The smallest batch size that needs no more batches than `most` does: little is filled up."""
    return math.ceil(count / math.ceil(count / most))
