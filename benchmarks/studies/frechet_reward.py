"""How far a batch of digits is from real ones, as a measure for evaluations: each image is given the batch's distance.

    evaluate:
      images: 500
      rewards: [{kind: python, name: frechet, file: benchmarks/studies/frechet_reward.py, chunk: 500}]

The Frechet distance in the 64 features of the second classifier, to all 1,797 real digits as they are: ten kinds, about
as many of each. `memdiff.digits.judge` weighs them to the images' own mix of digits; here a wrong mix counts.

Shapes: N images, C channels, H W pixels.
"""

from functools import cache

import numpy as np
import torch

from memdiff.digits.classifiers import DigitClassifier, load_classifier
from memdiff.digits.judge import Array, frechet_distance, weighted_gaussian
from memdiff.digits.scans import real_digits


def frechet_to_real(images_NCHW: torch.Tensor) -> float:
    """Of images in [0, 1] to all real digits. Compare only distances of equal N: the bias is of order 1 / N."""
    return frechet_distance(*_gaussian(_judge(), images_NCHW), *_real())


def score(images_NCHW: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """The batch's distance, once for each image."""
    del prompts
    return torch.full((len(images_NCHW),), frechet_to_real(images_NCHW.cpu()))


@torch.no_grad()
def _gaussian(judge: DigitClassifier, images_NCHW: torch.Tensor) -> tuple[Array, Array]:
    """Mean and covariance of the features."""
    features_NF = torch.cat([judge.features(part) for part in images_NCHW.split(256)]).double().numpy()
    return weighted_gaussian(features_NF, np.full(len(features_NF), 1 / len(features_NF)))


@cache
def _judge() -> DigitClassifier:
    return load_classifier("judge")


@cache
def _real() -> tuple[Array, Array]:
    images_N1HW = torch.cat([real_digits(split)[0] for split in ("train", "held_out")])
    return _gaussian(_judge(), images_N1HW)
