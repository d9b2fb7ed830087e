"""Layers that keep less for the backward than torch's and diffusers' own, for the same bits.

A frozen convolution's backward needs its weight and the shape of its input; torch keeps the input too, since one
formula serves both gradients. GEGLU keeps its projection and gelu(gate); the second is made again from the first.
GroupNorm and the SiLU behind it keep both their inputs; the second is made again from the first.

Shapes: B rows, C channels, H W pixels, T tokens, F features.
"""

import math
from typing import Any, NamedTuple

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
        elif type(module) is torch.nn.GroupNorm and module.affine:
            module.__class__ = LeanGroupNorm
        elif type(module) is torch.nn.SiLU and not module.inplace:
            module.__class__ = LeanSilu


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
        torch.ops.aten.gelu.out(gate, out=d_x).mul_(gradients[0])  # in place: the graph is at its largest here
        torch.mul(gradients[0], x, out=d_gate)
        torch.ops.aten.gelu_backward.grad_input(d_gate, gate, grad_input=d_gate)
        return d_projected


class _Normed(NamedTuple):
    """What a GroupNorm's output was made from."""

    layer: torch.nn.GroupNorm
    x_BCHW: torch.Tensor
    mean_BG: torch.Tensor
    rstd_BG: torch.Tensor
    version: int  # of the output


class LeanGroupNorm(torch.nn.GroupNorm):
    """A GroupNorm whose output says what it was made from, to a `LeanSilu` behind it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """B C ... -> the same shape."""
        differentiated = input.requires_grad or self.weight.requires_grad or self.bias.requires_grad
        if not (differentiated and torch.is_grad_enabled() and input.is_contiguous()):
            return super().forward(input)
        y, mean_BG, rstd_BG = _norm(input, self.weight, self.bias, self)
        normed = _Normed(self, input, mean_BG.detach(), rstd_BG.detach(), y._version)
        y.normed = normed  # pyright: ignore[reportAttributeAccessIssue]
        return y


class LeanSilu(torch.nn.SiLU):
    """A SiLU that, behind a `LeanGroupNorm`, keeps the norm's input in the place of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """SiLU of each element, any shape; behind a lean norm only that norm's input is kept."""
        if getattr(input, "silu_is_done", False):  # by `channels_last.NormSiluLast`
            return input
        normed: _Normed | None = getattr(input, "normed", None)
        if normed is None or normed.version != input._version:
            return super().forward(input)
        layer = normed.layer
        output = _NormedSilu.apply(normed.x_BCHW, layer.weight, layer.bias, input.detach(), normed)
        return output  # pyright: ignore[reportReturnType]


class _NormedSilu(Function):
    """x, weight, bias -> silu(y), given y = GroupNorm(x)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        y_BCHW: torch.Tensor,
        normed: _Normed,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_BCHW, weight_C, bias_C, normed.mean_BG, normed.rstd_BG)
        ctx.layer = normed.layer
        return torch.nn.functional.silu(y_BCHW)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_C, bias_C, mean_BG, rstd_BG = ctx.saved_tensors
        y = _norm(x, weight_C, bias_C, ctx.layer)[0]
        d_y = torch.ops.aten.silu_backward.grad_input(gradients[0], y, grad_input=y)
        backward = torch.ops.aten.native_group_norm_backward.default
        wanted = list(ctx.needs_input_grad[:3])
        return *backward(d_y, x, mean_BG, rstd_BG, weight_C, *_sizes(x, ctx.layer), wanted), None, None


def _norm(
    x: torch.Tensor, weight_C: torch.Tensor, bias_C: torch.Tensor, layer: torch.nn.GroupNorm
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, and mean and 1/std of every row's groups."""
    return torch.native_group_norm(x, weight_C, bias_C, *_sizes(x, layer), layer.eps)


def _sizes(x: torch.Tensor, layer: torch.nn.GroupNorm) -> tuple[int, int, int, int]:
    return x.shape[0], x.shape[1], math.prod(x.shape[2:]), layer.num_groups
