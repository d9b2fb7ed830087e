"""What REINFORCE knows of a round between sampling it and its last update.

Shapes: B pairs of one piece, n images of this rank, N images over all ranks, K steps, P reward parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from memdiff.chain.trajectory import Trajectory
from memdiff.methods.eligibility import Eligibilities
from memdiff.methods.experience import Batch, Metrics, Round
from memdiff.rewards.non_finite import Settled
from memdiff.runtime.placement import numbers_on


@dataclass
class Experience:
    """A round's images, how they came about and what they are worth."""

    round: Round
    trajectory: Trajectory  # of no images where nothing is replayed
    advantages_n: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    raw_PN: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # every part's scores of all ranks' images
    rewards_N: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    metrics: Metrics = field(default_factory=dict)
    step_advantages_Kn: torch.Tensor | None = None  # where a baseline tells the steps of an image apart
    old_log_probs: torch.Tensor | None = None  # of the first pass, one a pair
    left_out: frozenset[int] = frozenset()  # of this rank's images, by their numbers among them
    eligibilities: list[Eligibilities] = field(default_factory=list)  # until the first update has taken them

    @property
    def num_counted(self) -> int:
        """Images of all ranks that the round's gradient is a mean over."""
        return len(self.rewards_N) or self.round.batch.num_images

    def leave_out(self, settled: Settled, batch: Batch) -> None:
        """What `settle` dropped of this rank's images."""
        counted = set(settled.images)
        self.left_out = frozenset(at for at, image in enumerate(batch.images) if image not in counted)

    def advantages_of(self, images: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
        """Advantages of (image, step) pairs, B: by step where there is a baseline, else by image."""
        image_B = numbers_on(self.advantages_n.device, images)
        if self.step_advantages_Kn is None:
            return self.advantages_n[image_B]
        return self.step_advantages_Kn[numbers_on(image_B.device, steps), image_B]
