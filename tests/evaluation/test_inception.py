"""The Inception network of FID: the published layout of its weights, its three differences, its two resizes.

Shapes: B images, C channels, H W pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memdiff.errors import ConfigError
from memdiff.evaluation.inception import Inception, inception_layers, load_inception

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    """Every statistic and bias away from where training starts it."""
    torch.manual_seed(0)
    network = nn.Sequential(inception_layers()).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("bn.bias", "running_mean")):
            tensor.normal_(std=0.1)
    return network


def test_the_published_layout(network: nn.Sequential) -> None:
    """pytorch-fid's file: 94 convolutions, 21,785,568 parameters before the classifier, torchvision's names."""
    tensors = network.state_dict()
    assert sum(parameter.numel() for parameter in network.parameters()) == 21_785_568
    assert sum(name.endswith("conv.weight") for name in tensors) == 94
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    }
    assert {name: tuple(tensors[name].shape) for name in shapes} == shapes


def by_hand(block: nn.Module, name: str, x_BCHW: Tensor, **options: Any) -> Tensor:
    """(conv(x) - mean) / sqrt(var + 0.001) * scale + bias, cut at 0."""
    tensors = {key.removeprefix(name + "."): value for key, value in block.state_dict().items() if key.startswith(name)}
    x_BCHW = F.conv2d(x_BCHW, tensors["conv.weight"], **options)
    mean, variance, scale, bias = (
        tensors[f"bn.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x_BCHW - mean) / torch.sqrt(variance + 0.001) * scale + bias).clamp(min=0)


def average_without_padding(x_BCHW: Tensor) -> Tensor:
    """Sums over 3 x 3 divided by how many of the nine positions lie inside."""
    ones = torch.ones_like(x_BCHW)
    return F.avg_pool2d(x_BCHW, 3, 1, 1, divisor_override=1) / F.avg_pool2d(ones, 3, 1, 1, divisor_override=1)


def test_first_and_last_blocks_by_hand(network: nn.Sequential) -> None:
    """Branch by branch: the first block averages without its padding, the last takes the maximum."""
    first, last = network.get_submodule("Mixed_5b"), network.get_submodule("Mixed_7c")
    x = torch.rand(2, 192, 5, 5)
    expected = [
        by_hand(first, "branch1x1", x),
        by_hand(first, "branch5x5_2", by_hand(first, "branch5x5_1", x), padding=2),
        by_hand(
            first,
            "branch3x3dbl_3",
            by_hand(first, "branch3x3dbl_2", by_hand(first, "branch3x3dbl_1", x), padding=1),
            padding=1,
        ),
        by_hand(first, "branch_pool", average_without_padding(x)),
    ]
    with torch.no_grad():
        torch.testing.assert_close(first(x), torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)
        y = torch.rand(1, 2048, 3, 3)
        pooled = by_hand(last, "branch_pool", F.max_pool2d(y, 3, 1, 1))
        split = by_hand(last, "branch3x3_1", y)
        halves = [
            by_hand(last, "branch3x3_2a", split, padding=(0, 1)),
            by_hand(last, "branch3x3_2b", split, padding=(1, 0)),
        ]
        output = last(y)
        assert output.shape == (1, 2048, 3, 3)
        torch.testing.assert_close(output[:, -192:], pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output[:, 320:1088], torch.cat(halves, dim=1), rtol=1e-4, atol=1e-5)


def test_features_of_images_of_any_size(network: nn.Sequential) -> None:
    """One channel is three equal ones; 0..1 becomes -1..1; 2048 numbers an image."""
    inception = Inception(network, "pytorch-fid")
    grey = torch.rand(1, 1, 16, 20)
    features = inception(grey)
    assert features.shape == (1, 2048) and inception.num_features == 2048
    pixels = F.interpolate(grey.expand(-1, 3, -1, -1), size=(299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(features, network(2 * pixels - 1))


def test_clean_fids_resize_is_pillows() -> None:
    """Antialiased bicubic in floating point, as PIL does it on each channel; cut to 0..1."""
    image_CHW = np.random.default_rng(0).random((3, 400, 350), dtype=np.float32)
    by_pillow = [
        np.asarray(Image.fromarray(channel).resize((299, 299), Image.Resampling.BICUBIC)) for channel in image_CHW
    ]
    ours = Inception(nn.Identity(), "clean-fid").pixels(torch.from_numpy(image_CHW)[None])[0]
    torch.testing.assert_close(ours, torch.from_numpy(np.stack(by_pillow)).clamp(0, 1), rtol=0, atol=2e-5)


def test_files_are_read_strictly_and_known_by_their_sum(network: nn.Sequential, tmp_path: Path) -> None:
    """A file without the counters of training is whole; another's weights are refused by name, with what is missing."""
    tensors = {name: tensor for name, tensor in network.state_dict().items() if "tracked" not in name}
    tensors |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    save_file(tensors, tmp_path / "inception.safetensors")
    loaded, file = load_inception(str(tmp_path / "inception.safetensors"), "pytorch-fid", CPU)
    assert not file.published and len(file.sha256) == 64 and not loaded.training
    state = loaded.state_dict()
    assert torch.equal(state["layers.Mixed_7c.branch_pool.bn.bias"], tensors["Mixed_7c.branch_pool.bn.bias"])
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "half.safetensors")
    half, _ = load_inception(str(tmp_path / "half.safetensors"), "pytorch-fid", CPU)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float32, torch.int64}
    save_file({"fc.bias": tensors["fc.bias"]}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"missing: Conv2d_1a_3x3\.conv\.weight"):
        load_inception(str(tmp_path / "other.safetensors"), "pytorch-fid", CPU)
    with pytest.raises(ConfigError, match=r"pt_inception-2015-12-05-6726825d\.pth"):
        load_inception(str(tmp_path), "pytorch-fid", CPU)
