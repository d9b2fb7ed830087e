"""The two digit classifiers: one rewards, the other only judges. Different architectures, seeds and features.

A policy that learns to please the reward's weaknesses rather than to draw digits is found out by the judge, which it
never sees.
"""

# Shapes: B images, C channels (1 or 3), H W pixels of any size, S the side asked for, T tokens, D width, F features,
# K the ten digits.

from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memdiff.digits.paths import CLASSIFIERS
from memdiff.digits.scans import SIZE
from memdiff.runtime.state_dicts import assign_strictly, read_safetensors

NUM_DIGITS = 10


def _resize_matrix(size: int, like: Tensor) -> Tensor:
    """The S x `size` matrix of bilinear, antialiased resizing along one axis, on the device of `like`."""
    identity_11HH = torch.eye(size, dtype=torch.float32, device=like.device)[None, None]
    return F.interpolate(identity_11HH, size=(SIZE, size), mode="bilinear", antialias=True)[0, 0]


def as_digits(images_BCHW: Tensor) -> Tensor:
    """Images of any size, one or three channels, in [0, 1] -> B 1 16 16, float32: channels averaged, bilinear.

    Resizing is two matrix products: interpolate's own backward adds in no fixed order on CUDA.
    Differentiable with respect to the images.
    """
    assert images_BCHW.ndim == 4 and images_BCHW.shape[1] in (1, 3), f"B 1|3 H W, got {tuple(images_BCHW.shape)}"
    images_B1HW = images_BCHW.float().mean(dim=1, keepdim=True)
    height, width = images_B1HW.shape[2:]
    if (height, width) == (SIZE, SIZE):
        return images_B1HW
    return _resize_matrix(height, images_B1HW) @ images_B1HW @ _resize_matrix(width, images_B1HW).T


class DigitClassifier(nn.Module):
    """What both classifiers share: images in [0, 1] -> features -> ten logits."""

    num_features: int

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.head = nn.Linear(num_features, NUM_DIGITS)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The penultimate activations, float32. Returns: BF."""
        raise NotImplementedError

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of the ten digits, float32. Returns: BK."""
        return self.head(self.features(images_BCHW))


class StridedConvNet(DigitClassifier):
    """The reward: 3 x 3 convolutions, twice halved by a stride, averaged over the last 4 x 4 positions."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__(num_features=widths[-1])
        first, second, third = widths
        self.layers = nn.Sequential(
            *self._layer(1, first, stride=1),
            *self._layer(first, second, stride=2),
            *self._layer(second, second, stride=1),
            *self._layer(second, third, stride=2),
            *self._layer(third, third, stride=1),
        )

    @staticmethod
    def _layer(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The last layer's mean over positions. Returns: BF, F = 96."""
        return self.layers(2.0 * as_digits(images_BCHW) - 1.0).mean(dim=(2, 3))


class MixerBlock(nn.Module):
    """One block of MLP-Mixer (Tolstikhin et al. 2021): an MLP over the tokens, then one over the width."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_width = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_tokens = nn.Sequential(nn.Linear(tokens, tokens), nn.GELU(), nn.Linear(tokens, tokens))
        self.over_width = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Mixes over the tokens, then over the width: B T D in and out."""
        x_BTD = x_BTD + self.over_tokens(self.norm_tokens(x_BTD).transpose(1, 2)).transpose(1, 2)
        return x_BTD + self.over_width(self.norm_width(x_BTD))


class PatchMixer(DigitClassifier):
    """The judge: overlapping 4 x 4 patches every 2 pixels, mixed by MLPs; no convolution after the patches."""

    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__(num_features=width)
        self.patches = nn.Conv2d(1, width, 4, stride=2, padding=1)
        tokens = (SIZE // 2) ** 2
        self.blocks = nn.Sequential(*(MixerBlock(tokens, width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The normed tokens' mean. Returns: BF, F = 64."""
        x_BDHW = self.patches(2.0 * as_digits(images_BCHW) - 1.0)
        return self.norm(self.blocks(rearrange(x_BDHW, "b d h w -> b (h w) d"))).mean(dim=1)


def new_classifier(which: Literal["reward", "judge"]) -> DigitClassifier:
    """The untrained network, initialised from torch's global generator."""
    match which:
        case "reward":
            return StridedConvNet()
        case "judge":
            return PatchMixer()


def load_classifier(which: Literal["reward", "judge"], folder: Path = CLASSIFIERS) -> DigitClassifier:
    """The shipped network (or that of another build) in float32, evaluation mode, parameters frozen; on the CPU.

    Raises ConfigError in one line where the file is damaged or another network's.
    """
    classifier = new_classifier(which)
    file = folder / f"{which}.safetensors"
    stored = {name: value.to(torch.float32, copy=True) for name, value in read_safetensors(file).items()}
    assign_strictly(classifier, stored, str(file))
    return classifier.eval().requires_grad_(False)
