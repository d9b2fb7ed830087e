"""Features of image files, computed once for FID, KID and diversity alike.

Shapes: B images of a batch, N images, C channels, H W pixels, F features.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from memdiff.rewards.clip import fit_square
from memdiff.runtime.placement import HOST, place
from memdiff.scoring.images import read_image

Network = Callable[[Tensor], Tensor]  # images_BCHW in [0, 1], three channels -> B F


def image_batches(files: Sequence[Path], side: int | None, batch: int) -> Iterator[Tensor]:
    """B 3 H W fp32 in [0, 1]; with `side` cut to a square and resized, antialiased bicubic. All files have one size."""
    for start in range(0, len(files), batch):
        images = [read_image(file)[None] for file in files[start : start + batch]]
        yield torch.cat(images if side is None else [fit_square(image, side, "crop") for image in images])


@torch.no_grad()
def features_of(
    network: Network,
    files: Sequence[Path],
    *,
    side: int | None,
    device: torch.device,
    advance: Callable[[int], None] = lambda count: None,
    batch: int = 32,
) -> Tensor:
    """N F fp32 on the host, in the order of the files. `advance` is told of finished images."""
    parts = []
    for images_BCHW in image_batches(files, side, batch):
        parts.append(place(network(place(images_BCHW, device)).float(), HOST))
        advance(len(images_BCHW))
    return torch.cat(parts)
