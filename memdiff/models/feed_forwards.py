"""Feed-forward layers of transformer blocks that are run again in the backward, with the norm before them.

A feed-forward layer widens its input eightfold, so that it keeps about a third of a UNet's graph for a tenth of its
arithmetic: the cheapest part to recompute.

Shapes: B rows, T tokens, F features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward

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
        return self._gradient_checkpointing_func(self._from_before_the_norm, normed.x_BTF, normed.layer)

    def _from_before_the_norm(self, x_BTF: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
        return super().forward(torch.nn.LayerNorm.forward(norm, x_BTF))
