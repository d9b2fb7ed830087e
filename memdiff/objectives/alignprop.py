"""AlignProp: the reward's gradient through a random number of last steps (Prabhudesai et al. 2023, section 4.2).

    grad J = 1/N sum_i d r(x_0) / d theta,    x_0 differentiated from step T - K_i on,    K_i ~ Uniform{1, ..., T}

K_i is a function of (seed, round, image): neither ranks, micro-batches nor a resumed run change it. The paper draws
from Uniform(0, 50); a K of 0 would have no gradient. Its public code draws anew inside every step and detaches the
prediction alone; here, as the paper says, the steps before T - K_i have no part in the gradient at all.

Images of similar K share a micro-batch, so that little is swept for nothing.
"""

from collections.abc import Iterator, Sequence

from memdiff.chain.noise import Noise, Stream, draw_integer
from memdiff.memory.knobs import Knobs
from memdiff.models.policy import Policy
from memdiff.objectives.config import AlignPropConfig
from memdiff.objectives.direct import DirectGradient, Experience
from memdiff.objectives.experience import Metrics, Round
from memdiff.pieces import Pieces
from memdiff.ranks import Ranks
from memdiff.rewards.weighted import WeightedReward


class AlignProp:
    """Fulfils memdiff.objectives.objective.Objective."""

    def __init__(
        self, config: AlignPropConfig, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs
    ) -> None:
        self.config = config
        self.direct = DirectGradient(config, reward, pieces, ranks, knobs, queries=1)

    def collect(self, policy: Policy, round: Round) -> Experience:
        """Draws where each image's gradient begins."""
        noise, steps = round.batch.noise, policy.schedule.steps
        starts_n = [
            steps - self.depth(seed=noise.seed, round=noise.round, image=image, steps=steps)
            for image in round.batch.images
        ]
        return self.direct.collect(policy, round, starts_n)

    def depth(self, *, seed: int, round: int, image: int, steps: int) -> int:
        """K of an image in a chain of so many steps."""
        most = self.config.steps_of(steps)
        if self.config.truncation == "fixed":
            return most
        shared = 0 if self.config.one_draw_per_batch else image
        return draw_integer(seed=seed, stream=Stream.TRUNCATION, round=round, image=shared, low=1, high=most)

    def updates(self, experience: Experience) -> Iterator[Experience]:
        """One."""
        return self.direct.updates(experience)

    def differentiate(self, policy: Policy, part: Experience) -> Metrics:
        """Adds the gradient of the loss to the pieces' sums."""
        return self.direct.differentiate(policy, part, self.direct.through_the_chain)

    def rehearse(self, policy: Policy, noise: Noise, images: int, prompts: Sequence[str]) -> None:
        """One micro-batch over the steps that are kept and one more."""
        self.direct.rehearse(policy, noise, images, prompts, self.direct.through_the_chain)

    def halve(self) -> None:
        """Smaller micro-batches from here on."""
        self.direct.size.halve()

    def passes(self, policy: Policy) -> int:
        """All steps forward, on average half of the differentiated ones back."""
        steps = policy.schedule.steps
        most = self.config.steps_of(steps)
        return steps + (most if self.config.truncation == "fixed" else (most + 1) // 2)

    def state(self) -> dict[str, list[float]]:
        """Nothing is learnt but the weights."""
        return {}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Nothing."""
