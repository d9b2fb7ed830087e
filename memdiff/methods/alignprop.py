"""AlignProp: the reward's gradient through a random number of last steps (Prabhudesai et al. 2023, section 4.2).

    grad J = 1/N sum_i d r(x_0) / d theta,    x_0 differentiated from step T - K_i on,    K_i ~ Uniform{1, ..., T}

K_i is a function of (seed, round, image): neither ranks, micro-batches nor a resumed run change it. The paper draws
from Uniform(0, 50); a K of 0 would have no gradient. Its public code draws anew inside every step and detaches the
prediction alone; here, as the paper says, the steps before T - K_i have no part in the gradient at all.

Images of similar K share a micro-batch, so that little is swept for nothing.
"""

from collections.abc import Sequence

from memdiff.chain.noise import Stream, draw_integer
from memdiff.methods.experience import Round
from memdiff.methods.reward_gradient import RewardGradient
from memdiff.methods.reward_gradient_config import AlignPropConfig
from memdiff.models.policy import Policy


class AlignProp(RewardGradient[AlignPropConfig]):
    """Each image's gradient goes through a number of last steps of its own."""

    def starts(self, policy: Policy, this_round: Round) -> Sequence[int]:
        """First differentiated step of each image: the chain's steps less the image's own K_i."""
        noise, steps = this_round.batch.noise, policy.schedule.steps
        return [
            steps - self.depth(seed=noise.seed, round_number=noise.round, image=image, steps=steps)
            for image in this_round.batch.images
        ]

    def depth(self, *, seed: int, round_number: int, image: int, steps: int) -> int:
        """K of an image in a chain of so many steps."""
        most = self.config.steps_of(steps)
        if self.config.truncation == "fixed":
            return most
        shared = 0 if self.config.one_draw_per_batch else image
        return draw_integer(
            seed=seed, stream=Stream.TRUNCATION, round_number=round_number, image=shared, low=1, high=most
        )

    def passes(self, policy: Policy) -> int:
        """All steps forward, on average half of the differentiated ones back."""
        steps = policy.schedule.steps
        most = self.config.steps_of(steps)
        return steps + (most if self.config.truncation == "fixed" else (most + 1) // 2)
