"""ReFL: one late step predicts the image at once, and the reward's gradient goes through that step alone (Xu et al.
2023, algorithm 1: ImageReward).

    k_i ~ Uniform{first_step, ..., last_step},    loss = scale 1/N sum_i max(target - r(x0_theta(x_k_i, k_i)), 0)

x_k is sampled without a graph. k_i is drawn for each image, a function of (seed, round, image); the paper's code draws
one for a whole batch. What is removed: the pre-training loss beside it; `base_distance` holds the model back instead.

Shapes: B rows of a micro-batch, C H W of x_t.
"""

from collections.abc import Iterator, Sequence

import torch

from memdiff.chain.noise import Noise, Stream, draw_integer
from memdiff.memory.knobs import Knobs
from memdiff.models.policy import Policy, sample_step
from memdiff.objectives.config import ReflConfig
from memdiff.objectives.direct import DirectGradient, Experience, Walk
from memdiff.objectives.experience import Metrics, Round
from memdiff.objectives.scoring import Scored
from memdiff.pieces import Pieces
from memdiff.ranks import Ranks
from memdiff.rewards.weighted import WeightedReward


class Refl:
    """Fulfils memdiff.objectives.objective.Objective."""

    def __init__(self, config: ReflConfig, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs) -> None:
        self.config, self.pieces, self.knobs = config, pieces, knobs
        self.direct = DirectGradient(config, reward, pieces, ranks, knobs, queries=1)

    def collect(self, policy: Policy, round: Round) -> Experience:
        """Draws the step of each image."""
        noise = round.batch.noise
        steps_n = [self.step(seed=noise.seed, round=noise.round, image=image) for image in round.batch.images]
        return self.direct.collect(policy, round, steps_n)

    def step(self, *, seed: int, round: int, image: int) -> int:
        """k of an image."""
        low, high = self.config.first_step, self.config.last_step
        return draw_integer(seed=seed, stream=Stream.TRUNCATION, round=round, image=image, low=low, high=high)

    def updates(self, experience: Experience) -> Iterator[Experience]:
        """One."""
        return self.direct.updates(experience)

    def differentiate(self, policy: Policy, part: Experience) -> Metrics:
        """Adds the gradient of the loss to the pieces' sums."""
        return self.direct.differentiate(policy, part, self._at_once)

    def rehearse(self, policy: Policy, noise: Noise, images: int, prompts: Sequence[str]) -> None:
        """One micro-batch."""
        self.direct.rehearse(policy, noise, images, prompts, self._at_once, start=self.config.last_step)

    def halve(self) -> None:
        """Smaller micro-batches from here on."""
        self.direct.size.halve()

    def passes(self, policy: Policy) -> int:
        """To the middle of the range forward, and one step back."""
        return (self.config.first_step + self.config.last_step) // 2 + 2

    def state(self) -> dict[str, list[float]]:
        """Nothing is learnt but the weights."""
        return {}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Nothing."""

    def _at_once(self, walk: Walk) -> Scored:
        """From the state before `walk.begin` to each row's own step, to its predicted x_0, and back through that."""
        policy, rows, x_BCHW = walk.policy, walk.rows, walk.x_BCHW
        steps, clock = list(walk.starts), walk.round.clock
        with clock.phase("rollout"):
            for step in range(walk.begin, max(steps)):
                later_B = x_BCHW.new_tensor([float(own > step) for own in steps]).view(-1, 1, 1, 1)
                further_BCHW = sample_step(policy, walk.round.batch.noise, x_BCHW, step, rows.images, rows.prompts)
                x_BCHW = torch.where(later_B > 0, further_BCHW, x_BCHW)
            x0_BCHW, pull = self.pieces.vjp(
                lambda x: policy.x0(x, steps, rows.prompts), x_BCHW, keep=self.knobs.kept_steps > 0
            )
        with clock.phase("reward"):
            scored = self.direct.scoring.pull_back(policy, x0_BCHW, rows)
        with clock.phase("train"):
            everyone = range(rows.count)
            costate_BCHW = walk.sweep.bounded(scored.costate_BCHW, rows)
            walk.sweep.tally.costate(steps, costate_BCHW, rows, everyone)
            pull(costate_BCHW)
            if self.config.base_distance:
                walk.sweep.pull_to_base(policy, rows, x_BCHW, steps, everyone)
            walk.round.advance(2 * rows.count)
        return scored
