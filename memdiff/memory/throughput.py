"""How much of a card's peak a denoiser reaches, for an estimate of hours. No torch.

A row has a source; a measured row takes a published one's place. A family without rows takes Stable Diffusion's, and a
card without rows the same share of its own peak: neither is measured.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import log2

GUIDED_STEP_TFLOP = 2 * 0.803  # Stable Diffusion 1.5 at 512 x 512: two branches, matrix products and convolutions alone
T4_PEAK_TFLOPS = 65.0


@dataclass(frozen=True)
class Row:
    """Guided steps a second of a batch, on a T4 in fp16."""

    family: str
    images: int  # in a batch; the network's rows are twice as many
    steps_a_second: float
    source: str

    @property
    def rows(self) -> int:
        """Rows of the network that one piece holds."""
        return 2 * self.images

    @property
    def share(self) -> float:
        """Of the card's peak."""
        return self.images * self.steps_a_second * GUIDED_STEP_TFLOP / T4_PEAK_TFLOPS


PUBLISHED = "diffusers' documentation, torch 2.0: SD 1.5, 512 x 512, fp16, channels_last, guided, eager, on a T4"
TABLE = (
    Row("stable_diffusion", 1, 6.9, PUBLISHED),
    Row("stable_diffusion", 4, 1.79, PUBLISHED),
    Row("stable_diffusion", 16, 0.43, PUBLISHED),
)


def peak_share(family: str, rows: float) -> float:
    """What a network of this family reaches of a card's peak with so many rows in a piece.

    Between two rows of the table by the logarithm of theirs; beyond its ends as at the end.
    """
    own = [row for row in TABLE if row.family == family] or [row for row in TABLE if row.family == "stable_diffusion"]
    points = sorted((log2(row.rows), row.share) for row in own)
    at = log2(max(1.0, rows))
    if at <= points[0][0]:
        return points[0][1]
    for (low, below), (high, above) in pairwise(points):
        if at <= high:
            return below + (above - below) * (at - low) / (high - low)
    return points[-1][1]
