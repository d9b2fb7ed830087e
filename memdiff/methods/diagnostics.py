"""Diagnostics of a reward gradient's way back through the chain, kept on the device until the round's row is written.

Shapes: B rows of a micro-batch, C H W of x_t, K steps.
"""

from collections.abc import Sequence

import torch

from memdiff.methods.experience import Metrics
from memdiff.methods.scoring import Rows
from memdiff.runtime.placement import numbers_on
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import OnGradients


class Diagnostics:
    """Squared norms by step, in units of one image's own loss: they do not shrink as rounds grow."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self._sums_4K = torch.zeros(4, steps, device=device)  # costates^2, their images; gradients^2, their pieces
        self._distance = torch.zeros(2, device=device)  # sum of distances to the base, how many

    def costate(self, steps: Sequence[int], costate_BCHW: torch.Tensor, rows: Rows, taking_part: Sequence[int]) -> None:
        """d loss / d of what each row's step makes, of the rows that take part."""
        norm_B = costate_BCHW.flatten(start_dim=1).norm(dim=1) / rows.weight
        for step in sorted({steps[row] for row in taking_part}):
            members = [row for row in taking_part if steps[row] == step]
            self._sums_4K[0, step] += norm_B[numbers_on(norm_B.device, members)].square().sum()
            self._sums_4K[1, step] += len(members)

    def gradient(self, step: int, rows: Rows) -> OnGradients:
        """What a step's piece tells its parameter gradients to."""

        def add(gradients: Sequence[torch.Tensor | None], unscale: torch.Tensor | None) -> None:
            present = [gradient for gradient in gradients if gradient is not None]
            if present:
                norms = torch._foreach_norm(present, 2, dtype=torch.promote_types(present[0].dtype, torch.float32))
                norm = torch.stack([norm.to(self._sums_4K.device) for norm in norms]).norm() / (
                    rows.weight * rows.count
                )
                self._sums_4K[2, step] += (norm if unscale is None else norm * unscale).square()
                self._sums_4K[3, step] += 1

        return add

    def distance(self, distance_B: torch.Tensor, taking_part: Sequence[int]) -> None:
        """Of predictions to those of the base."""
        taken_b = distance_B[numbers_on(distance_B.device, taking_part)]
        self._distance[0] += taken_b.sum()
        self._distance[1] += len(taking_part)

    def copied(self) -> Sequence[torch.Tensor]:
        """The sums as they stand."""
        return [self._sums_4K.clone(), self._distance.clone()]

    def restore(self, sums: Sequence[torch.Tensor]) -> None:
        """Back to what `copied` gave."""
        self._sums_4K.copy_(sums[0])
        self._distance.copy_(sums[1])

    def metrics(self, ranks: Ranks) -> Metrics:
        """`costate_norm`: entry k is the root mean square over images of |d loss_i / d x_{k+1}| (ReFL: / d x_0).

        `step_gradient_norm`: entry k is the root mean square over micro-batches of the norm of the gradient of their
        mean loss with respect to the parameters, through step k alone. Both null where no gradient went through.
        `base_distance`: mean over images and steps.
        """
        costates, images, gradients, pieces = ranks.sum(self._sums_4K).tolist()
        total, count = ranks.sum(self._distance).tolist()
        norms: Metrics = {"costate_norm": _roots(costates, images)}
        if any(pieces):
            norms["step_gradient_norm"] = _roots(gradients, pieces)
        return norms | ({"base_distance": total / count} if count else {})


def _roots(squares: Sequence[float], counts: Sequence[float]) -> list[float | None]:
    return [(square / count) ** 0.5 if count else None for square, count in zip(squares, counts, strict=True)]
