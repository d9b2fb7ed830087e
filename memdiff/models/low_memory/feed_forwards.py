"""Feed-forward layers of transformer blocks that are run again in the backward, with the norm before them.

A feed-forward layer widens its input eightfold, so that it keeps about a third of a UNet's graph for a tenth of its
arithmetic: the cheapest part to recompute.

Shapes: B rows, T tokens, F features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from torch.autograd import Function

from memdiff.errors import ConfigError


def recompute_feed_forwards(network: torch.nn.Module, checkpoint: Callable[..., Any]) -> None:
    """Changes the layers of `network` in place: each runs as `checkpoint(call, x)`.

    Raises ConfigError where there are none.
    """
    layers = [module for module in network.modules() if type(module) is FeedForward]
    if not layers:
        raise ConfigError(
            "memory.activation_checkpointing: this UNet has no feed-forward layers to recompute; set it to blocks"
        )
    for layer in layers:
        layer.__class__ = RecomputedFeedForward
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, checkpoint  # pyright: ignore
    for block in network.modules():
        if isinstance(block, BasicTransformerBlock) and type(block.norm3) is torch.nn.LayerNorm:
            block.norm3.__class__ = NormBeforeFeedForward


class _Normed(NamedTuple):
    """What a norm's output was made from."""

    layer: torch.nn.LayerNorm
    x_BTF: torch.Tensor
    version: int  # of the output


class NormBeforeFeedForward(torch.nn.LayerNorm):
    """A LayerNorm whose output says what it was made from."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """B T F -> B T F."""
        y = super().forward(input)
        if torch.is_grad_enabled():
            y.normed = _Normed(self, input, y._version)  # pyright: ignore[reportAttributeAccessIssue]
        return y


class RecomputedFeedForward(FeedForward):
    """Keeps its norm's input alone. Its switch is diffusers' own for blocks, so that theirs turns it off too."""

    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable[..., Any]

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """B T F -> B T F."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return super().forward(hidden_states, *args, **kwargs)
        normed: _Normed | None = getattr(hidden_states, "normed", None)
        if normed is None or normed.version != hidden_states._version:
            return self._gradient_checkpointing_func(super().forward, hidden_states)
        if self._is_frozen() and not any(parameter.requires_grad for parameter in normed.layer.parameters()):
            return _FrozenFeedForward.apply(normed.x_BTF, normed.layer, self)  # pyright: ignore[reportReturnType]
        return self._gradient_checkpointing_func(self._from_before_the_norm, normed.x_BTF, normed.layer)

    def _from_before_the_norm(self, x_BTF: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
        return super().forward(torch.nn.LayerNorm.forward(norm, x_BTF))

    def _is_frozen(self) -> bool:
        """Whether it is a gate between two plain layers, none of them trained."""
        gate, dropout, out, *more = self.net
        return (
            isinstance(gate, GEGLU)
            and type(gate.proj) is type(out) is torch.nn.Linear
            and isinstance(dropout, torch.nn.Dropout)
            and not (more or (dropout.training and dropout.p))
            and not any(parameter.requires_grad for parameter in self.parameters())
        )


class _FrozenFeedForward(Function):
    """Norm, projection, gate, projection. By hand, since the backward needs the first projection again and no more:
    a checkpoint would gate it once more, and costs as much as a small layer itself."""

    @staticmethod
    def forward(ctx: Any, x_BTF: torch.Tensor, norm: torch.nn.LayerNorm, layer: FeedForward) -> torch.Tensor:
        ctx.save_for_backward(x_BTF)
        ctx.norm, ctx.layer = norm, layer
        return FeedForward.forward(layer, torch.nn.LayerNorm.forward(norm, x_BTF))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x_BTF,) = ctx.saved_tensors
        norm, (gate, _, out) = ctx.norm, ctx.layer.net
        shape = norm.normalized_shape
        y_BTF, mean_BT1, rstd_BT1 = torch.native_layer_norm(x_BTF, shape, norm.weight, norm.bias, norm.eps)
        wide = torch.nn.functional.linear(y_BTF, gate.proj.weight, gate.proj.bias)
        del y_BTF
        d_gated = (gradients[0].reshape(-1, gradients[0].shape[-1]) @ out.weight).view(*wide.shape[:-1], -1)
        # In place: the graph is at its largest when the first of these runs.
        value, switch = wide.chunk(2, dim=-1)
        value.mul_(d_gated)
        d_gated.mul_(torch.nn.functional.gelu(switch))
        torch.ops.aten.gelu_backward.grad_input(value, switch, grad_input=switch)
        value.copy_(d_gated)
        del d_gated
        d_y = (wide.view(-1, wide.shape[-1]) @ gate.proj.weight).view(x_BTF.shape)
        backward = torch.ops.aten.native_layer_norm_backward.default
        d_x = backward(d_y, x_BTF, shape, mean_BT1, rstd_BT1, norm.weight, norm.bias, [True, False, False])[0]
        return d_x, None, None
