"""What half precision may cost on whatever processor runs the tests: about as much as it costs plain torch there.

fp16 rounds the result of each operation to a relative 2^-11, and the error of a gradient is the sum of thousands of
such roundings, each carried on by the rest of the graph. Which there are depends on the processor's kernels (how wide
sums are, what is fused), so that no constant bounds them: without AVX-512 the same graph is off by up to 1.5 times as
much, without vector instructions by 3 times. But two graphs of one network in one precision on one machine meet
roundings of the same number and size. Independent sums of equal size have norms of equal size: the same error within
some percent, sqrt(2) times as much for a graph that rounds everything twice. Hence

    |got - exact|  <=  2 |plain - exact|        got: ours; plain: torch's graph as it stands; exact: in fp32
    |got - plain|  <=  2 |plain - exact|        two errors of equal size and any direction are at most that far apart

What tests of half precision look for (underflow of small gradients, a forgotten scale, sums kept in fp16) is off by ten
percent and more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces

TIMES = 2.0
ROUNDING = 2.0**-11  # of one operation in fp16: no error is asked to be smaller
WORST = 0.1  # a plain graph that is further off holds nothing to anything


def put_weights(full: Any, half: Any) -> None:
    """Makes every network of an fp32 policy hold what the fp16 one's hold."""
    for name, network in full.networks.items():
        for ours, theirs in zip(network.parameters(), half.networks[name].parameters(), strict=True):
            ours.data.copy_(theirs.data)


def relative_error(got: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """|got - exact| / |exact| of all tensors as one vector, in fp64."""
    a, b = (torch.cat([tensor.detach().double().flatten() for tensor in tensors]) for tensors in (got, exact))
    assert b.norm() > 0
    return float((a - b).norm() / b.norm())


def most(plain_error: float) -> float:
    """The largest error that ours may have where plain torch's graph has this one."""
    assert plain_error < WORST, plain_error
    return TIMES * max(plain_error, ROUNDING)


def check(got: Sequence[torch.Tensor], plain: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> None:
    """Asserts that `got` is near both `exact` and `plain`, by the two inequalities above."""
    bound = most(relative_error(plain, exact))
    for name, reference in (("exact", exact), ("plain", plain)):
        error = relative_error(got, reference)
        assert error <= bound, f"off by {error:.2e} from the {name} gradient, the bound is {bound:.2e}"


SMALL = 1e-6  # below 2^-14, where fp16 begins to lose bits
Network = Callable[[torch.Tensor], torch.Tensor]


def check_pieces(make: Callable[[Any], Network], half: Any, full: Any, x: torch.Tensor, dy: torch.Tensor) -> None:
    """Holds a piece of the fp16 policy's network `make(policy)` to torch's graph of it and to the fp32 policy's.

    Output, dx and parameter gradients each. The piece is pulled with a costate of 1e-6 `dy`, the graphs with `dy`.
    """
    sums = Gradients(list(half.trainable().values()))
    y, pull = Pieces(sums).vjp(make(half), x.clone().requires_grad_())
    dx = pull(SMALL * dy)
    assert dx is not None and dx.dtype == torch.float32
    got = [y.detach(), dx / SMALL, *(total / SMALL for total in sums.sums)]
    plain, exact = (_graph(make(policy), x, dy, list(policy.trainable().values())) for policy in (half, full))
    for part in (slice(0, 1), slice(1, 2), slice(2, None)):
        if any(bool(tensor.any()) for tensor in exact[part]):
            check(got[part], plain[part], exact[part])
        else:
            assert not any(bool(tensor.any()) for tensor in got[part])


def _graph(fn: Network, x: torch.Tensor, dy: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Output, dx and parameter gradients of one plain autograd graph."""
    leaf = x.clone().requires_grad_()
    y = fn(leaf)
    all_gradients = torch.autograd.grad(y, (leaf, *parameters), dy, allow_unused=True)
    zeros = (torch.zeros_like(tensor) for tensor in (leaf, *parameters))
    return [y.detach(), *(zero if one is None else one for zero, one in zip(zeros, all_gradients, strict=True))]
