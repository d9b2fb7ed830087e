"""Pieces: vector-Jacobian products that keep their graph or make it again, and add into fp32 sums.

    y, pull = pieces.vjp(fn, x, keep=False)     # y = fn(x); pull(dy) adds the parameter gradients and returns dx

`keep=True` holds the graph until the pull. `keep=False` runs without a graph, and the pull computes it again: memory
for time. Either way one graph lives at a time, unless the caller keeps several.

A network in fp16 has a scale for the gradients of each piece (`half_precision`). A piece whose gradients overflow all
the same is made again at a lower one. Whether they do is asked once for the pieces of a micro-batch (`together`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from memdiff.errors import NumericError
from memdiff.runtime.finite_checks import AllFinite, all_finite, noted, notes_here
from memdiff.runtime.gradients import Gradients, Sums
from memdiff.runtime.half_precision import Scale, scaled_by

Result = TypeVar("Result")
Pull = Callable[[torch.Tensor], torch.Tensor | None]
# Told one piece's parameter gradients (None where it took no part) and what they are still to be multiplied by.
OnGradients = Callable[[Sequence[torch.Tensor | None], torch.Tensor | None], None]

STEPS_DOWN = (0, 6, 12, 18)  # powers of two taken off, in turn, when a piece overflows


@dataclass
class _Overflows:
    """What all pieces of a process that share a network have seen of it."""

    redone: int = 0
    expected: bool = False  # the latest micro-batch had one


class Pieces:
    """Makes pieces whose pulls add into one set of accumulators.

    `all_finite` is injected, so that a plan on fake tensors can leave the question out.
    """

    def __init__(self, gradients: Gradients, *, all_finite: AllFinite = all_finite) -> None:
        self.gradients = gradients
        self._all_finite = all_finite
        self._overflows = _Overflows()
        self.notes_answers = True  # `together` asks once
        self._there_already = 0  # of the next pieces, those whose gradients the sums hold

    def into(self, gradients: Gradients) -> "Pieces":
        """The same, but for where the pulls add."""
        pieces = Pieces(gradients, all_finite=self._all_finite)
        pieces._overflows, pieces.notes_answers = self._overflows, self.notes_answers
        return pieces

    @property
    def redone(self) -> int:
        """Pieces that overflowed and were made again, since the start."""
        return self._overflows.redone

    def together(self, work: Callable[..., Result], *arguments: Any, undo: Sequence[Sums] = ()) -> Result:
        """`work(*arguments)`, of whose pieces it is asked once, at the end, whether their gradients are finite.

        From the first that is not on, nothing has been added: then `undo` is taken back and all of it done again, each
        piece asked as it comes, without adding a second time what was added before. The sums are bit for bit those of
        asking each piece. What `work` raises about numbers that are not finite it raises the second time. Where memory
        runs out `undo` is taken back, too.

        After a micro-batch with such a piece each piece of the next is asked as it comes, since one rarely comes alone.
        """
        before = [sums.copied() for sums in undo]
        try:
            return self._together(work, arguments, undo, before)
        except torch.OutOfMemoryError:
            _restore(undo, before)
            raise

    def _together(
        self,
        work: Callable[..., Result],
        arguments: Sequence[Any],
        undo: Sequence[Sums],
        before: Sequence[Sequence[torch.Tensor]],
    ) -> Result:
        if self._overflows.expected or not self.notes_answers:
            return self._asked_one_by_one(work, arguments)
        results: list[Result] = []
        with noted(self.gradients.device) as notes:
            error = _attempted(results, work, arguments)
        if notes.good():
            if error is not None:
                raise error
            return results.pop()
        del error
        results.clear()  # its tensors go before they are made again
        _restore(undo, before)
        self._there_already = notes.added
        try:
            return self._asked_one_by_one(work, arguments)
        finally:
            self._there_already = 0

    def _asked_one_by_one(self, work: Callable[..., Result], arguments: Sequence[Any]) -> Result:
        before = self._overflows.redone
        result = work(*arguments)
        self._overflows.expected = self._overflows.redone > before
        return result

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
        kept: tuple[torch.Tensor, torch.Tensor, Scale] | None = None
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
                    self._add(gradients, unscale)
                    return dx
                if unscale is None:
                    break
                self._overflows.redone += 1
            raise NumericError(
                f"the gradient of {self._first_not_finite(every)} is not finite at any loss scale; look at the reward, "
                "lower the learning rate, or set model.precision to fp32"
            )

        return y, pull

    def _add(self, gradients: Sequence[torch.Tensor | None], unscale: torch.Tensor | None) -> None:
        """To the sums, if no piece so far was bad and they don't hold it already."""
        notes = notes_here()
        if notes is not None:
            self.gradients.add(gradients, unscale, only_if=notes.flag)
            notes.count_added()
        elif self._there_already:
            self._there_already -= 1
        else:
            self.gradients.add(gradients, unscale)

    def _first_not_finite(self, gradients: Sequence[torch.Tensor | None]) -> str:
        """The first parameter with such a gradient, by name where it has one; else what goes into the piece."""
        names = self.gradients.names or tuple(f"parameter {n}" for n in range(len(self.gradients.parameters)))
        pairs = zip((*names, "a piece's input"), gradients, strict=False)
        broken = (name for name, gradient in pairs if gradient is not None and not self._all_finite([gradient]))
        return next(broken, "a piece")

    def _with_graph(
        self, fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, steps_down: int
    ) -> tuple[torch.Tensor, torch.Tensor, Scale]:
        leaf = x.detach().requires_grad_(x.requires_grad)
        scale = Scale(steps_down)
        with scaled_by(scale), torch.enable_grad():
            return fn(leaf), leaf, scale

    def _pull_once(
        self, graph: tuple[torch.Tensor, torch.Tensor, Scale], dy: torch.Tensor
    ) -> tuple[Sequence[torch.Tensor | None], torch.Tensor | None, torch.Tensor | None]:
        y, leaf, scale = graph
        inputs = (*self.gradients.parameters, *([leaf] if leaf.requires_grad else []))
        gradients = torch.autograd.grad(y, inputs, dy, allow_unused=True)
        parameters = gradients[: len(self.gradients.parameters)]
        unscale = None if scale.value is None else 1 / scale.value
        return parameters, unscale, gradients[-1] if leaf.requires_grad else None


def _restore(undo: Sequence[Sums], before: Sequence[Sequence[torch.Tensor]]) -> None:
    for sums, copy in zip(undo, before, strict=True):
        sums.restore(copy)


def _attempted(results: list[Result], work: Callable[..., Result], arguments: Sequence[Any]) -> Exception | None:
    """Appends what `work` gives; an error is returned without its frames, which hold a graph. Memory's is raised."""
    try:
        results.append(work(*arguments))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return error
    return None
