"""fp16 networks between fp32 mathematics: gradients enter scaled by a power of two, leave unscaled.

The power is a function of the gradient's own largest element, never of history: nothing underflows, and the same piece
always gives the same bits.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.autograd import Function

LARGEST_HALF_GRADIENT = 1.0  # where a gradient enters fp16: leaves 2^16 for sums over pixels, 2^-24 for small elements


def widen(x: torch.Tensor) -> torch.Tensor:
    """At least fp32: half precisions are widened, fp64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Scale:
    """The power of two by which one piece's gradients are scaled inside fp16; set by its own backward."""

    def __init__(self, steps_down: int) -> None:
        self.steps_down = steps_down
        self.value: torch.Tensor | None = None

    def of(self, gradient: torch.Tensor) -> torch.Tensor:
        """The scale, which the first gradient that is asked for sets."""
        if self.value is None:
            largest = gradient.abs().amax()
            exponent = torch.floor(math.log2(LARGEST_HALF_GRADIENT) - torch.log2(largest)) - self.steps_down
            # All-zero gradients have no size of their own; the bounds keep scale and 1 / scale finite in fp32.
            self.value = torch.exp2(torch.where(largest > 0, exponent, 0.0).clamp(-100, 100))
        return self.value


_scale_of_this_piece: ContextVar[Scale | None] = ContextVar("scale_of_this_piece", default=None)


@contextmanager
def scaled_by(scale: Scale) -> Iterator[None]:
    """Inside, networks in fp16 are called with this scale."""
    token = _scale_of_this_piece.set(scale)
    try:
        yield
    finally:
        _scale_of_this_piece.reset(token)


class _Enter(Function):
    """fp32 -> network dtype; its gradient is unscaled back into fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype, scale: Scale) -> torch.Tensor:
        ctx.scale = scale
        return x.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        assert ctx.scale.value is not None, "the network's output came back without its gradient being scaled"
        return gradients[0].float() / ctx.scale.value, None, None


class _Leave(Function):
    """Network dtype -> fp32; its gradient is scaled into the network dtype."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, scale: Scale) -> torch.Tensor:
        ctx.scale, ctx.dtype = scale, y.dtype
        return y.float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (gradients[0] * ctx.scale.of(gradients[0])).to(ctx.dtype), None


def call_network(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`network(x)` with x cast from fp32 to `dtype` and the result cast back, gradients scaled where fp16 needs it.

    A piece may call several fp16 networks or one several times: they share the scale that the last call's gradient set.
    """
    scale = _scale_of_this_piece.get()
    if dtype != torch.float16 or scale is None:
        return widen(network(x.to(dtype)))
    return _Leave.apply(network(_Enter.apply(x, dtype, scale)), scale)  # pyright: ignore[reportReturnType]
