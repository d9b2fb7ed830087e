"""Pieces give plain autograd's gradients, kept or made again, in fp32 and in fp16."""

import gc
import weakref

import pytest
import torch

from memdiff.errors import NumericError
from memdiff.runtime.finite_checks import all_finite
from memdiff.runtime.fixed_batches import fixed_batches
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.half_precision import call_network
from memdiff.runtime.vjp import Pieces


class Net(torch.nn.Module):
    """Three layers whose graph keeps activations."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width, 16),
            torch.nn.SiLU(),
            torch.nn.Linear(16, 16),
            torch.nn.Tanh(),
            torch.nn.Linear(16, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def relative(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got.double() - truth.double()).norm() / truth.double().norm())


@pytest.mark.parametrize("keep", [True, False])
def test_pull_is_the_vector_jacobian_product(keep: bool, generator: torch.Generator) -> None:
    """y, dx and every parameter gradient equal autograd's on the same function, bit for bit."""
    net = Net()
    x, dy = (torch.randn(4, 6, generator=generator) for _ in range(2))
    pieces = Pieces(Gradients(list(net.parameters())))
    y, pull = pieces.vjp(net, x.requires_grad_(), keep=keep)
    dx = pull(dy)
    truth = net(x)
    gradients = torch.autograd.grad(truth, [x, *net.parameters()], dy)
    assert torch.equal(y, truth.detach()) and not y.requires_grad
    assert dx is not None and torch.equal(dx, gradients[0])
    for got, expected in zip(pieces.gradients.sums, gradients[1:], strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kept", [(), (2,), (0, 1, 2, 3)])
def test_reverse_sweep_is_one_graph(kept: tuple[int, ...], generator: torch.Generator) -> None:
    """A chain x -> x + net(x), four times, pulled step by step: the same gradients as one graph through all of it."""
    net = Net()
    x = start = torch.randn(3, 6, generator=generator, dtype=torch.float32)
    pieces = Pieces(Gradients(list(net.parameters())))
    pulls = []
    for step in range(4):
        x, pull = pieces.vjp(lambda x: x + net(x), x.requires_grad_(), keep=step in kept)
        pulls.append(pull)
    costate = 2 * x  # of |x|^2
    for pull in reversed(pulls):
        costate = pull(costate)
        assert costate is not None
    leaf = x = start.detach().requires_grad_()
    for _ in range(4):
        x = x + net(x)
    truth = torch.autograd.grad(x.square().sum(), [leaf, *net.parameters()])
    assert costate is not None and relative(costate, truth[0]) < 1e-6
    for got, expected in zip(pieces.gradients.sums, truth[1:], strict=True):
        assert relative(got, expected) < 1e-6


def test_graph_dies_with_its_pull(generator: torch.Generator) -> None:
    """After the pull nothing keeps the piece's activations alive, and it can't be pulled twice."""
    net, seen = Net(), []

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            seen.append(weakref.ref(self))

    def fn(x: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            return net(x).square()

    pieces = Pieces(Gradients(list(net.parameters())))
    y, pull = pieces.vjp(fn, torch.randn(2, 6, generator=generator), keep=True)
    assert len(seen) > 3 and all(saved() is not None for saved in seen)
    assert pull(torch.ones_like(y)) is None  # x requires no gradient
    gc.collect()
    assert all(saved() is None for saved in seen)
    with pytest.raises(IndexError):
        pull(torch.ones_like(y))


def test_parameters_that_take_no_part_get_nothing() -> None:
    used, unused = torch.nn.Parameter(torch.tensor([2.0])), torch.nn.Parameter(torch.tensor([3.0]))
    pieces = Pieces(Gradients([used, unused]))
    y, pull = pieces.vjp(lambda x: x * used, torch.tensor([5.0]), keep=True)
    pull(torch.ones_like(y))
    pull = pieces.vjp(lambda x: x * used, torch.tensor([1.0]))[1]
    pull(torch.ones_like(y))
    assert [float(total) for total in pieces.gradients.sums] == [6.0, 0.0]  # 5 + 1: pieces add up
    assert float(pieces.gradients.max_abs()) == 6.0
    pieces.gradients.zero()
    assert float(pieces.gradients.max_abs()) == 0.0


@pytest.mark.parametrize("magnitude", [1e-12, 1e-6, 1.0, 1e4])
def test_half_networks_lose_nothing_to_the_costates_size(magnitude: float, generator: torch.Generator) -> None:
    """fp16 network, costates from 1e-12 to 1e4: gradients within 5e-3 of the fp32 network's with the same weights."""
    half, full = Net().half(), Net().half().float()
    x = torch.randn(8, 6, generator=generator).half().float()
    dy = torch.randn(8, 6, generator=generator) * magnitude
    pieces = Pieces(Gradients(list(half.parameters())))
    _, pull = pieces.vjp(lambda x: call_network(half, x, torch.float16), x.requires_grad_())
    dx = pull(dy)
    truth = torch.autograd.grad(full(x), [x, *full.parameters()], dy)
    assert pieces.redone == 0
    assert dx is not None and dx.dtype == torch.float32 and relative(dx, truth[0]) < 5e-3
    for got, expected in zip(pieces.gradients.sums, truth[1:], strict=True):
        assert got.dtype == torch.float32 and relative(got, expected) < 5e-3


def test_the_scale_has_no_history(generator: torch.Generator) -> None:
    """The same fp16 piece gives the same bits whatever pieces came before it."""
    net = Net().half()
    x, dy = torch.randn(8, 6, generator=generator), torch.randn(8, 6, generator=generator) * 1e-7

    def sums(before: list[float]) -> list[torch.Tensor]:
        pieces = Pieces(Gradients(list(net.parameters())))
        for magnitude in before:
            pieces.vjp(lambda x: call_network(net, x, torch.float16), x)[1](dy * magnitude)
        pieces.gradients.zero()
        pieces.vjp(lambda x: call_network(net, x, torch.float16), x)[1](dy)
        return [total.clone() for total in pieces.gradients.sums]

    assert all(torch.equal(a, b) for a, b in zip(sums([]), sums([1e9, 1e-9]), strict=True))


def test_an_overflowing_piece_is_made_again_at_a_lower_scale(generator: torch.Generator) -> None:
    """A layer that multiplies gradients by 2^18 overflows fp16 at the first scale; the redone piece is right.

    Truth: y = 2^18 (w x), x of ones over 4 entries, dy = 1: dw = 2^18 x.
    """
    weight = torch.nn.Parameter(torch.full((4,), 0.001, dtype=torch.float16))
    pieces = Pieces(Gradients([weight]))

    def network(x: torch.Tensor) -> torch.Tensor:
        return (weight * x) * 2.0**9 * 2.0**9  # forward: 262; backward: 2^18 at the weight

    _, pull = pieces.vjp(lambda x: call_network(network, x, torch.float16), torch.ones(4), keep=True)
    pull(torch.ones(4))
    assert pieces.redone == 1
    assert torch.equal(pieces.gradients.sums[0], torch.full((4,), 2.0**18))


def test_a_gradient_that_is_never_finite_is_told() -> None:
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    pieces = Pieces(Gradients([weight]))
    _, pull = pieces.vjp(lambda x: (weight * x).sqrt(), torch.ones(1))
    with pytest.raises(NumericError, match="not finite"):
        pull(torch.ones(1))
    assert float(pieces.gradients.max_abs()) == 0.0


def test_all_finite() -> None:
    assert all_finite([torch.ones(3), torch.zeros(2).half()]) and all_finite([])
    assert not all_finite([torch.ones(3), torch.tensor([1.0, float("nan")])])
    assert not all_finite([torch.tensor([float("inf")]).half()])


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (5, 2, [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]),
        (2, 4, [([0, 1, 0, 0], 2)]),
        (4, 4, [([0, 1, 2, 3], 4)]),
        (0, 3, []),
    ],
)
def test_batches_have_one_shape(count: int, size: int, expected: list[tuple[list[int], int]]) -> None:
    assert list(fixed_batches(range(count), size)) == expected
