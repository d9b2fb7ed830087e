"""Pieces: vector-Jacobian products that keep their graph or make it again, and the fp32 sums they add into.

    y, pull = pieces.vjp(fn, x, keep=False)     # y = fn(x); pull(dy) adds the parameter gradients and returns dx

`keep=True` holds the graph until the pull. `keep=False` runs without a graph, and the pull computes it again: memory
for time. Either way one graph lives at a time, unless the caller keeps several.

Half precision. A network that runs in fp16 sits between fp32 mathematics (`call_network`). Gradients enter it scaled by
a power of two that is a function of their own largest element, never of history, and leave it unscaled in fp32: nothing
underflows, and the same piece always gives the same bits. A piece whose gradients overflow all the same is made again
at a lower scale.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch.autograd import Function

from memdiff.errors import NumericError
from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import HOST, place

Item = TypeVar("Item")
Pull = Callable[[torch.Tensor], torch.Tensor | None]
AllFinite = Callable[[Sequence[torch.Tensor]], bool]
# Told one piece's parameter gradients (None where it took no part) and what they are still to be multiplied by.
OnGradients = Callable[[Sequence[torch.Tensor | None], torch.Tensor | None], None]

LARGEST_HALF_GRADIENT = 1.0  # where a gradient enters fp16: leaves 2^16 for sums over pixels, 2^-24 for small elements
STEPS_DOWN = (0, 6, 12, 18)  # powers of two taken off, in turn, when a piece overflows


def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether no element is infinite or NaN. Waits for the device."""
    if not tensors:
        return True
    largest = torch._foreach_norm(list(tensors), ord=math.inf)
    return bool(torch.stack([norm.float() for norm in largest]).isfinite().all())


def widen(x: torch.Tensor) -> torch.Tensor:
    """At least fp32: half precisions are widened, fp64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Gradients:
    """fp32 sums (fp64 of fp64 parameters) of parameter gradients, on the parameters' device or in host memory."""

    def __init__(self, parameters: Sequence[torch.Tensor], *, on_host: bool = False, names: Sequence[str] = ()) -> None:
        self.parameters, self.names = tuple(parameters), tuple(names)
        with memory_tag("gradients"):
            self._sums = [
                torch.zeros_like(
                    p, dtype=torch.promote_types(p.dtype, torch.float32), device=HOST if on_host else p.device
                )
                for p in parameters
            ]

    def add(self, gradients: Sequence[torch.Tensor | None], unscale: torch.Tensor | None) -> None:
        """Adds one piece's gradients, one a parameter, None where it took no part; `unscale` is a scalar tensor.

        All of them: memory for a widened or unscaled copy may run out when some are added already, and a piece that is
        made again would count those twice. That gradient is then added without a copy, to the same bits.
        """
        for total, gradient in zip(self._sums, gradients, strict=True):
            if gradient is not None and not _added(total, gradient, unscale):
                _add_without_a_copy(total, gradient, unscale)

    @property
    def sums(self) -> Sequence[torch.Tensor]:
        """One fp32 tensor a parameter, in the parameters' order."""
        return self._sums

    def copied(self) -> Sequence[torch.Tensor]:
        """The sums as they stand, on the host."""
        return [place(total, HOST).clone() for total in self._sums]

    def restore(self, sums: Sequence[torch.Tensor]) -> None:
        """Back to what `copied` gave."""
        for total, saved in zip(self._sums, sums, strict=True):
            total.copy_(saved)  # not through `place`: this is called where memory has run out

    def zero(self) -> None:
        """Forgets everything, for the next update."""
        torch._foreach_zero_(self._sums)

    def max_abs(self) -> torch.Tensor:
        """The largest |element|: a scalar."""
        return torch.stack(
            [norm.to(self._sums[0].device) for norm in torch._foreach_norm(self._sums, ord=math.inf)]
        ).max()

    @property
    def num_bytes(self) -> int:
        """Size of the sums."""
        return sum(total.numel() * total.element_size() for total in self._sums)


def _added(total: torch.Tensor, gradient: torch.Tensor, unscale: torch.Tensor | None) -> bool:
    """False where memory ran out: `total` is as it was, and the copies are gone."""
    try:
        full = widen(gradient)
        total.add_(place(full if unscale is None else full * unscale, total.device))
    except torch.OutOfMemoryError:
        return False
    return True


def _add_without_a_copy(total: torch.Tensor, gradient: torch.Tensor, unscale: torch.Tensor | None) -> None:
    """Allocates nothing on a GPU. `unscale` is a power of two: its product is exact, fused with the sum or not."""
    gradient = place(gradient, total.device)
    if unscale is None:
        total.add_(gradient)
    else:
        total.addcmul_(gradient, place(unscale, total.device))


class _Scale:
    """The power of two by which one piece's gradients are scaled inside fp16; set by its own backward."""

    def __init__(self, steps_down: int) -> None:
        self.steps_down = steps_down
        self.value: torch.Tensor | None = None

    def of(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.value is None:
            largest = gradient.abs().amax()
            exponent = torch.floor(math.log2(LARGEST_HALF_GRADIENT) - torch.log2(largest)) - self.steps_down
            # All-zero gradients have no size of their own; the bounds keep scale and 1 / scale finite in fp32.
            self.value = torch.exp2(torch.where(largest > 0, exponent, 0.0).clamp(-100, 100))
        return self.value


_scale_of_this_piece: ContextVar[_Scale | None] = ContextVar("scale_of_this_piece", default=None)


class _Enter(Function):
    """fp32 -> network dtype; its gradient is unscaled back into fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype, scale: _Scale) -> torch.Tensor:
        ctx.scale = scale
        return x.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        assert ctx.scale.value is not None, "the network's output came back without its gradient being scaled"
        return gradients[0].float() / ctx.scale.value, None, None


class _Leave(Function):
    """Network dtype -> fp32; its gradient is scaled into the network dtype."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, scale: _Scale) -> torch.Tensor:
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


class Pieces:
    """Makes pieces whose pulls add into one set of accumulators.

    `all_finite` is injected, so that a plan on fake tensors can leave the question out.
    """

    def __init__(self, gradients: Gradients, *, all_finite: AllFinite = all_finite) -> None:
        self.gradients = gradients
        self._all_finite = all_finite
        self.redone = 0  # pieces that overflowed and were made again, since the start

    def into(self, gradients: Gradients) -> "Pieces":
        """The same, but for where the pulls add."""
        return Pieces(gradients, all_finite=self._all_finite)

    def are_finite(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether no element is infinite or NaN, as far as that can be asked."""
        return self._all_finite(tensors)

    def vjp(
        self,
        fn: Callable[[torch.Tensor], torch.Tensor],
        x: torch.Tensor,
        *,
        keep: bool = False,
        on_gradients: OnGradients | None = None,
    ) -> tuple[torch.Tensor, Pull]:
        """(fn(x), pull). `pull(dy)` may be called once; it returns dx (fp32) where x requires a gradient, else None.

        `on_gradients` is told what a pull adds, before it adds it.
        Raises NumericError from the pull where no scale makes the gradients finite.
        """
        kept: tuple[torch.Tensor, torch.Tensor, _Scale] | None = None
        if keep:
            kept = self._with_graph(fn, x, 0)
            y = kept[0].detach()
        else:
            with torch.no_grad():
                y = fn(x)
        waiting = [kept]  # popped by the pull, so that the graph dies with it

        def pull(dy: torch.Tensor) -> torch.Tensor | None:
            graph = waiting.pop()
            every: Sequence[torch.Tensor | None] = ()
            for steps_down in STEPS_DOWN:
                gradients, unscale, dx = self._pull_once(graph or self._with_graph(fn, x, steps_down), dy)
                graph = None
                every = (*gradients, dx)
                if self._all_finite([gradient for gradient in every if gradient is not None]):
                    if on_gradients is not None:
                        on_gradients(gradients, unscale)
                    self.gradients.add(gradients, unscale)
                    return dx
                if unscale is None:
                    break
                self.redone += 1
            raise NumericError(
                f"the gradient of {self._first_not_finite(every)} is not finite at any loss scale; look at the reward, "
                "lower the learning rate, or set model.precision to fp32"
            )

        return y, pull

    def _first_not_finite(self, gradients: Sequence[torch.Tensor | None]) -> str:
        """The first parameter with such a gradient, by name where it has one; else what goes into the piece."""
        names = self.gradients.names or tuple(f"parameter {n}" for n in range(len(self.gradients.parameters)))
        pairs = zip((*names, "a piece's input"), gradients, strict=False)
        broken = (name for name, gradient in pairs if gradient is not None and not self._all_finite([gradient]))
        return next(broken, "a piece")

    def _with_graph(
        self, fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, steps_down: int
    ) -> tuple[torch.Tensor, torch.Tensor, _Scale]:
        leaf = x.detach().requires_grad_(x.requires_grad)
        scale = _Scale(steps_down)
        token = _scale_of_this_piece.set(scale)
        try:
            with torch.enable_grad():
                return fn(leaf), leaf, scale
        finally:
            _scale_of_this_piece.reset(token)

    def _pull_once(
        self, graph: tuple[torch.Tensor, torch.Tensor, _Scale], dy: torch.Tensor
    ) -> tuple[Sequence[torch.Tensor | None], torch.Tensor | None, torch.Tensor | None]:
        y, leaf, scale = graph
        inputs = (*self.gradients.parameters, *([leaf] if leaf.requires_grad else []))
        gradients = torch.autograd.grad(y, inputs, dy, allow_unused=True)
        parameters = gradients[: len(self.gradients.parameters)]
        unscale = None if scale.value is None else 1 / scale.value
        return parameters, unscale, gradients[-1] if leaf.requires_grad else None


def fixed_batches(items: Sequence[Item], size: int) -> Iterator[tuple[list[Item], int]]:
    """Batches of exactly `size` items, the last filled up with its own first item, and how many of each are valid.

    One shape for every batch: kernels differ by shape, so a result would else depend on its neighbours' number.
    """
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        yield batch + [batch[0]] * (size - len(batch)), len(batch)
