"""Layers with a weight for each image, so that the gradients of images in one batch come apart.

    y_n = x_n W_n^T,   all W_n equal:   d loss / d W_n is what image n adds to d loss / d W

Per-example gradients without a hook: autograd's own, of an expanded weight, which takes no memory itself. For layers
without a bias, as LoRA's are.

Shapes: n images, g branches of guidance; rows of one call are g blocks of n. T tokens or pixels, i and o features.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch


@contextmanager
def per_image_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside, the layers that own these parameters use them: names of `network`'s, each n times the parameter's shape.

    A graph that recomputes its blocks must be pulled inside, too.
    """
    layers = {name: network.get_submodule(name.removesuffix(".weight")) for name in weights}
    for name, layer in layers.items():
        apply = _convolution if isinstance(layer, torch.nn.Conv2d) else _linear
        layer.forward = partial(apply, layer, weights[name])
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward  # the class's own is behind it


def _linear(layer: torch.nn.Linear, weight_noi: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x: (g n) ... i -> (g n) ... o."""
    assert layer.bias is None, "a bias has no weight of its own here"
    images = weight_noi.shape[0]
    x_gnTi = x.reshape(x.shape[0] // images, images, -1, x.shape[-1])
    return torch.matmul(x_gnTi, weight_noi.transpose(1, 2)).reshape(*x.shape[:-1], -1)


def _convolution(layer: torch.nn.Conv2d, weight_noihw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x: (g n) i H W -> (g n) o H' W', as one convolution of n groups."""
    assert layer.bias is None and layer.groups == 1, "a bias has no weight of its own here"
    images, rows = weight_noihw.shape[0], x.shape[0]
    grouped = x.reshape(rows // images, images * x.shape[1], *x.shape[2:])
    y = torch.nn.functional.conv2d(
        grouped, weight_noihw.flatten(0, 1), stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
        groups=images,
    )  # fmt: skip
    return y.reshape(rows, -1, *y.shape[2:])
