"""The data behind the embedded models: scikit-learn's bundled handwritten digits, at 16 x 16.

1,797 scans of 8 x 8 pixels and 17 grey levels (the test part of UCI's optdigits), about 180 of each digit.
"""

# Shapes: N images, H W pixels (16 x 16). Values in [0, 1]: 0 is paper, 1 is ink.

from math import pi
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

SIZE = 16
MINORITY = (5, 6, 7, 8, 9)
MINORITY_SHARE = 0.22
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 0

MAX_ROTATION_DEGREES = 10.0
MAX_RELATIVE_SCALE = 0.1
MAX_SHIFT_PIXELS = 1.0
MAX_THICKNESS = 0.4


def real_digits(split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
    """One side of a fixed split, stratified by digit: 1,437 images to train on, 360 held out.

    Returns: images_N1HW, float32 in [0, 1], the scans upscaled bilinearly, and labels_N, int64.
    """
    from sklearn.datasets import load_digits  # a second, which a network of these images without them does not need
    from sklearn.model_selection import train_test_split

    pixels, targets = load_digits(return_X_y=True)
    labels = np.asarray(targets, dtype=np.int64)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    chosen = np.sort(train if split == "train" else held_out)
    scans_N1HW = torch.from_numpy(np.asarray(pixels, dtype=np.float32)[chosen] / 16.0).reshape(-1, 1, 8, 8)
    images_N1HW = F.interpolate(scans_N1HW, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return images_N1HW, torch.from_numpy(labels[chosen])


def is_minority(labels_N: Tensor) -> Tensor:
    """Which labels belong to the group 5-9. Returns bool_N."""
    return torch.isin(labels_N, torch.tensor(MINORITY))


def thinned_mix(seed: int) -> tuple[Tensor, Tensor]:
    """The training mix of the diffusion model: all training digits 0-4, and of 5-9 as many as make 22 % of the whole.

    The digits within the group keep their proportions: each is thinned alike. Returns: images_N1HW and labels_N.
    """
    images_N1HW, labels_N = real_digits("train")
    num_majority = int((~is_minority(labels_N)).sum())
    num_each = MINORITY_SHARE / (1.0 - MINORITY_SHARE) * num_majority / len(MINORITY)
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.nonzero(~is_minority(labels_N)).flatten()]
    for position, digit in enumerate(MINORITY):
        of_digit = torch.nonzero(labels_N == digit).flatten()
        # Rounding the running total, not each count, keeps the share of the whole right to one image.
        count = round(num_each * (position + 1)) - round(num_each * position)
        kept.append(of_digit[torch.randperm(len(of_digit), generator=generator)[:count]])
    chosen = torch.cat(kept)
    return images_N1HW[chosen], labels_N[chosen]


def augment(images_N1HW: Tensor, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Each image turned, scaled, shifted and made thinner or thicker by its own small random amounts.

    At strength 1 up to 10 degrees, 10 %, 1 pixel and 0.4 of a one-pixel erosion or dilation; other strengths scale
    these bounds. All draws come from `generator` (CPU): the same state gives the same images.
    Returns: N1HW in [0, 1].
    """
    draws_N5 = (2.0 * torch.rand(len(images_N1HW), 5, generator=generator) - 1.0) * strength
    angle_N = draws_N5[:, 0] * MAX_ROTATION_DEGREES * pi / 180.0
    scale_N = 1.0 + draws_N5[:, 1] * MAX_RELATIVE_SCALE
    # affine_grid's coordinates run over 2 units from edge to edge.
    shift_N2 = draws_N5[:, 2:4] * MAX_SHIFT_PIXELS * 2.0 / SIZE
    cosine_N, sine_N = torch.cos(angle_N) / scale_N, torch.sin(angle_N) / scale_N
    rows = [torch.stack([cosine_N, -sine_N, shift_N2[:, 0]], 1), torch.stack([sine_N, cosine_N, shift_N2[:, 1]], 1)]
    grid_NHW2 = F.affine_grid(torch.stack(rows, 1), list(images_N1HW.shape), align_corners=False)
    moved_N1HW = F.grid_sample(images_N1HW, grid_NHW2, padding_mode="zeros", align_corners=False)
    thickness_N111 = draws_N5[:, 4, None, None, None] * MAX_THICKNESS
    dilated_N1HW = F.max_pool2d(moved_N1HW, 3, stride=1, padding=1)
    eroded_N1HW = -F.max_pool2d(-moved_N1HW, 3, stride=1, padding=1)
    other_N1HW = torch.where(thickness_N111 > 0, dilated_N1HW, eroded_N1HW)
    return torch.lerp(moved_N1HW, other_N1HW, thickness_N111.abs()).clamp(0.0, 1.0)
