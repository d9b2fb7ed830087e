"""Counter-based noise: a function of (seed, stream, round, image, step), whatever device, rank or micro-batch asks.

numpy's Philox4x64 with key (seed, stream) and counter (0, step, image, round): no two draws share a counter, each has
2^64 blocks of its own. torch's CPU generator keeps only 32 bits of a seed, so hashed seeds would collide.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for: independent noise for each purpose."""

    ROLLOUT = 0
    EVALUATE = 1
    SAMPLE = 2
    PROBE = 3
    RENOISE = 4  # of finished images, for DRaFT-LV
    TRUNCATION = 5  # which steps a gradient goes through
    PROMPTS = 6
    REAL_IMAGES = 7  # which of them a round sees
    MINIBATCHES = 8  # which pairs of a round share an update
    CRITIC = 9  # that a critic sees images through


def draw_integer(*, seed: int, stream: Stream, round_number: int, image: int, low: int, high: int) -> int:
    """Uniform over low..high, both included: a function of these numbers alone."""
    key = np.array([seed, int(stream)], dtype=np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, image, round_number], dtype=np.uint64))
    return int(np.random.Generator(philox).integers(low, high, endpoint=True))


def draw_order(*, seed: int, stream: Stream, number: int, count: int) -> list[int]:
    """0..count-1 shuffled, by sorting random words: a function of these numbers alone. `number` is that of the draw."""
    key = np.array([seed, int(stream)], dtype=np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, 0, number], dtype=np.uint64))
    return np.argsort(philox.random_raw(count), kind="stable").tolist()


class Noise:
    """Standard normal tensors of one round, drawn on the host in fp32.

    `shape` is (C, H, W). A draw depends on nothing but the constructor's numbers, the image and the step.
    """

    def __init__(self, *, seed: int, stream: Stream, round_number: int, shape: tuple[int, int, int]) -> None:
        self.seed, self.stream, self.round, self.shape = seed, stream, round_number, shape

    def initial(self, images: Sequence[int]) -> torch.Tensor:
        """x_T of these images: B C H W."""
        return self._draw(images, 0)

    def step(self, images: Sequence[int], step: int) -> torch.Tensor:
        """The noise that a step adds to these images: B C H W."""
        return self._draw(images, 1 + step)

    def _draw(self, images: Sequence[int], counter: int) -> torch.Tensor:
        noise_BCHW = np.empty((len(images), *self.shape), dtype=np.float32)
        key = np.array([self.seed, int(self.stream)], dtype=np.uint64)
        for row, image in enumerate(images):
            philox = np.random.Philox(key=key, counter=np.array([0, counter, image, self.round], dtype=np.uint64))
            np.random.Generator(philox).standard_normal(dtype=np.float32, out=noise_BCHW[row])
        return torch.from_numpy(noise_BCHW)
