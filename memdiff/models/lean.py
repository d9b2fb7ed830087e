"""Layers that keep less for the backward than torch's and diffusers' own, for the same bits.

A frozen convolution's backward needs its weight and the shape of its input; torch keeps the input too, since one
formula serves both gradients. GEGLU keeps its projection and gelu(gate); the second is made again from the first.

Shapes: B rows, C channels, H W pixels, T tokens, F features.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch.autograd import Function


def make_lean(network: torch.nn.Module) -> None:
    """Changes the layers of `network` in place; their parameters, names and results stay."""
    for module in network.modules():
        if type(module) is torch.nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = LeanConv2d
        elif type(module) is GEGLU:
            module.__class__ = LeanGeglu


class LeanConv2d(torch.nn.Conv2d):
    """A convolution that does not keep its input while its weight is frozen."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """B C H W -> B C' H' W'."""
        parameters = (self.weight,) if self.bias is None else (self.weight, self.bias)
        if not input.requires_grad or any(parameter.requires_grad for parameter in parameters):
            return super().forward(input)
        return _FrozenConvolution.apply(input, self)  # pyright: ignore[reportReturnType]


class _FrozenConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: torch.Tensor, layer: LeanConv2d) -> torch.Tensor:
        ctx.save_for_backward(layer.weight)
        ctx.shape, ctx.layer = x_BCHW.shape, layer
        return torch.nn.Conv2d.forward(layer, x_BCHW)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        layer, shape_only = ctx.layer, weight.new_empty(1).expand(ctx.shape)
        options = (layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups)
        backward = torch.ops.aten.convolution_backward.default
        return backward(gradients[0], shape_only, weight, None, *options, [True, False, False])[0], None


class LeanGeglu(GEGLU):
    """GEGLU (Shazeer 2020, equation 6) that keeps its projection alone."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """B T F -> B T F'."""
        return _Gated.apply(self.proj(hidden_states))  # pyright: ignore[reportReturnType]


class _Gated(Function):
    """x, gate -> x gelu(gate), of the two halves of the last axis."""

    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(projected)
        x, gate = projected.chunk(2, dim=-1)
        return x * torch.nn.functional.gelu(gate)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (projected,) = ctx.saved_tensors
        x, gate = projected.chunk(2, dim=-1)
        d_projected = torch.empty_like(projected)
        d_x, d_gate = d_projected.chunk(2, dim=-1)
        torch.mul(gradients[0], torch.nn.functional.gelu(gate), out=d_x)
        d_gate.copy_(torch.ops.aten.gelu_backward(gradients[0] * x, gate))
        return d_projected
