"""The noise of a rollout's steps, drawn once more: what a replay in half precision scores.

log p(x_s | x_t) has the slope z / sigma along the mean, z = (x_s - mean) / sigma being the noise that was drawn. A
state that is stored in half precision is off by r, up to 2^-11 |x_s| in fp16, and gives (z + r / sigma) / sigma:
nothing where sigma is 0.5, a part in a hundred of the gradient in fp16 and a tenth in bf16 where a chain's last sigma
is 0.01, and worse than nothing where sigma is no larger than r. The noise itself is a function of (seed, image, step),
so that it costs no memory to score

    x_s = mean + sigma z,        mean: the replay's own,

which is what the policy did that sampled, whatever the network's own rounding of the mean: replay and rollout share it.
That holds for the weights that sampled. Later updates of a round need the mean of then: they read states in fp32.

Shapes: B pairs of (image, step).
"""

from collections.abc import Sequence

import torch

from memdiff.methods.experience import Batch
from memdiff.runtime.placement import upload


def drawn_noise(batch: Batch, pairs: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """z of each pair (image of this rank, step): B C H W fp32."""
    drawn = [batch.noise.step([batch.images[image]], step) for image, step in pairs]
    return upload(torch.cat(drawn), device)
