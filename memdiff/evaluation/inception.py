"""The Inception network of FID and KID, its weights in their published layout.

It is the network of Heusel et al. 2017 (TensorFlow's inception-2015-12-05) as mseitzer/pytorch-fid published its
weights: torchvision's key layout, and three differences in what the layers do. Averages over 3 x 3 leave padding out,
the last block takes the maximum in their place, and there are 1008 classes (which no feature uses).

Shapes: B images, C channels, H W pixels, F = 2048 features.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from memdiff.evaluation.request import Resize
from memdiff.rewards.preprocess import resize, to_rgb
from memdiff.rewards.weights import find_weights, load_weights, sha256
from memdiff.runtime.state_dicts import assign_strictly

FILE = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED = "6726825d"  # the sha256 of the published file begins with it, as its name says
NUM_FEATURES = 2048
SIDE = 299
# A path through a block: names of its children one after the other; a tuple in it is branches that are put together.
Steps = Sequence["str | tuple[str, ...]"]


class ConvBlock(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Activations of the layer: B C H W in and out."""
        return self.bn(self.conv(x_BCHW)).relu()


class Mixed(nn.Module):
    """A block of branches that are put together by channels."""

    def __init__(self, paths: Sequence[Steps], **children: nn.Module) -> None:
        super().__init__()
        self.paths = paths
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """All branches of the same input: B C H W in and out."""
        return torch.cat([self._along(path, x_BCHW) for path in self.paths], dim=1)

    def _along(self, path: Steps, x: Tensor) -> Tensor:
        for stop in path:
            if isinstance(stop, str):
                x = self.get_submodule(stop)(x)
            else:
                x = torch.cat([self.get_submodule(name)(x) for name in stop], dim=1)
        return x


def _average() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _block_a(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        [("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
         ("pool", "branch_pool")],
        branch1x1=ConvBlock(inputs, 64, 1),
        branch5x5_1=ConvBlock(inputs, 48, 1),
        branch5x5_2=ConvBlock(48, 64, 5, padding=2),
        branch3x3dbl_1=ConvBlock(inputs, 64, 1),
        branch3x3dbl_2=ConvBlock(64, 96, 3, padding=1),
        branch3x3dbl_3=ConvBlock(96, 96, 3, padding=1),
        pool=_average(),
        branch_pool=ConvBlock(inputs, pooled, 1),
    )  # fmt: skip


def _block_b(inputs: int) -> Mixed:
    return Mixed(
        [("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), ("pool",)],
        branch3x3=ConvBlock(inputs, 384, 3, stride=2),
        branch3x3dbl_1=ConvBlock(inputs, 64, 1),
        branch3x3dbl_2=ConvBlock(64, 96, 3, padding=1),
        branch3x3dbl_3=ConvBlock(96, 96, 3, stride=2),
        pool=nn.MaxPool2d(3, stride=2),
    )


def _block_c(inputs: int, width: int) -> Mixed:
    row: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
    column: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
    return Mixed(
        [("branch1x1",), ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
         tuple(f"branch7x7dbl_{number}" for number in range(1, 6)), ("pool", "branch_pool")],
        branch1x1=ConvBlock(inputs, 192, 1),
        branch7x7_1=ConvBlock(inputs, width, 1),
        branch7x7_2=ConvBlock(width, width, **row),
        branch7x7_3=ConvBlock(width, 192, **column),
        branch7x7dbl_1=ConvBlock(inputs, width, 1),
        branch7x7dbl_2=ConvBlock(width, width, **column),
        branch7x7dbl_3=ConvBlock(width, width, **row),
        branch7x7dbl_4=ConvBlock(width, width, **column),
        branch7x7dbl_5=ConvBlock(width, 192, **row),
        pool=_average(),
        branch_pool=ConvBlock(inputs, 192, 1),
    )  # fmt: skip


def _block_d(inputs: int) -> Mixed:
    return Mixed(
        [("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{number}" for number in range(1, 5)), ("pool",)],
        branch3x3_1=ConvBlock(inputs, 192, 1),
        branch3x3_2=ConvBlock(192, 320, 3, stride=2),
        branch7x7x3_1=ConvBlock(inputs, 192, 1),
        branch7x7x3_2=ConvBlock(192, 192, (1, 7), padding=(0, 3)),
        branch7x7x3_3=ConvBlock(192, 192, (7, 1), padding=(3, 0)),
        branch7x7x3_4=ConvBlock(192, 192, 3, stride=2),
        pool=nn.MaxPool2d(3, stride=2),
    )


def _block_e(inputs: int, pool: nn.Module) -> Mixed:
    row: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
    column: dict[str, Any] = {"kernel": (3, 1), "padding": (1, 0)}
    return Mixed(
        [("branch1x1",), ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
         ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")), ("pool", "branch_pool")],
        branch1x1=ConvBlock(inputs, 320, 1),
        branch3x3_1=ConvBlock(inputs, 384, 1),
        branch3x3_2a=ConvBlock(384, 384, **row),
        branch3x3_2b=ConvBlock(384, 384, **column),
        branch3x3dbl_1=ConvBlock(inputs, 448, 1),
        branch3x3dbl_2=ConvBlock(448, 384, 3, padding=1),
        branch3x3dbl_3a=ConvBlock(384, 384, **row),
        branch3x3dbl_3b=ConvBlock(384, 384, **column),
        pool=pool,
        branch_pool=ConvBlock(inputs, 192, 1),
    )  # fmt: skip


def inception_layers() -> "OrderedDict[str, nn.Module]":
    """Every layer by its published name, in its order; those without weights have names of our own."""
    layers: list[tuple[str, nn.Module]] = [
        ("Conv2d_1a_3x3", ConvBlock(3, 32, 3, stride=2)),
        ("Conv2d_2a_3x3", ConvBlock(32, 32, 3)),
        ("Conv2d_2b_3x3", ConvBlock(32, 64, 3, padding=1)),
        ("maxpool1", nn.MaxPool2d(3, stride=2)),
        ("Conv2d_3b_1x1", ConvBlock(64, 80, 1)),
        ("Conv2d_4a_3x3", ConvBlock(80, 192, 3)),
        ("maxpool2", nn.MaxPool2d(3, stride=2)),
        ("Mixed_5b", _block_a(192, 32)),
        ("Mixed_5c", _block_a(256, 64)),
        ("Mixed_5d", _block_a(288, 64)),
        ("Mixed_6a", _block_b(288)),
        ("Mixed_6b", _block_c(768, 128)),
        ("Mixed_6c", _block_c(768, 160)),
        ("Mixed_6d", _block_c(768, 160)),
        ("Mixed_6e", _block_c(768, 192)),
        ("Mixed_7a", _block_d(768)),
        ("Mixed_7b", _block_e(1280, _average())),
        ("Mixed_7c", _block_e(2048, nn.MaxPool2d(3, stride=1, padding=1))),
        ("avgpool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
    ]
    return OrderedDict(layers)


class Inception(nn.Module):
    """Images in [0, 1] of any size, one or three channels -> B F fp32. torchmetrics takes it as `feature`."""

    num_features = NUM_FEATURES

    def __init__(self, layers: nn.Module, resize: Resize) -> None:
        """`layers`: 299 x 299 pixels in [-1, 1] to features."""
        super().__init__()
        self.layers = layers
        self.resize: Resize = resize

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The last layer's mean over positions. Returns: BF, F = 2048."""
        return self.layers(2.0 * self.pixels(images_BCHW) - 1.0)

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """The resize that `resize` names, still in [0, 1]: B 3 299 299."""
        images_B3HW = to_rgb(images_BCHW.float())
        match self.resize:
            case "pytorch-fid":
                return interpolate(images_B3HW, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            case "clean-fid":
                return resize(images_B3HW, (SIDE, SIDE), "bicubic")


@dataclass(frozen=True)
class InceptionFile:
    """The weights that a figure was made with. `published`: they are the file that papers' figures are made with."""

    path: str
    sha256: str
    published: bool


def load_inception(source: str, resize: Resize, device: torch.device) -> tuple[Inception, InceptionFile]:
    """From the published file, a folder that holds it, or a hub id. Raises ConfigError in one line."""
    path = find_weights(source, FILE)
    digest = sha256(path)
    tensors = load_weights(path)
    with torch.device("meta"):
        network = nn.Sequential(inception_layers())
        network.add_module("fc", nn.Linear(NUM_FEATURES, 1008))
    for name in network.state_dict():
        if name.endswith("num_batches_tracked"):  # counts batches of a training, and is missing in older files
            tensors.setdefault(name, torch.tensor(0))
    assign_strictly(network, tensors, str(path))
    inception = Inception(network[:-1], resize).eval().requires_grad_(False).to(device, torch.float32)
    return inception, InceptionFile(str(path), digest, digest.startswith(PUBLISHED))
