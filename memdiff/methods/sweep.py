"""The reverse sweep: the exact gradient of a loss on x_0 through the last steps of a chain, flat in their number.

    x_{k+1} = mu_theta(x_k, k) + sigma_k z_k                        forward: x_k is stored, no graph
    costate_K = d loss / d x_K                                      from the decoder and the rewards
    d loss / d theta += (d mu / d theta)^T costate_{k+1}            backward: k = K-1, K-2, ..., first
    costate_k = (d mu / d x_k)^T costate_{k+1}

(Backpropagation through time.) A step's graph is made again when its turn comes, pulled, and dropped: one graph lives
at a time. The graphs of the last `kept_steps` steps are kept from the forward instead, since they are pulled first, and
need no second forward. z depends on neither theta nor x, so a recomputed step needs its mean alone. A step at which
nothing is trained only passes the costate on, and the sweep ends at the first step that trains.

Rows may begin at different steps: before a row's own first step its costate is zero.

Shapes: B rows of a micro-batch, C H W of x_t, K steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from memdiff.chain.trajectory import Trajectory
from memdiff.methods.diagnostics import Diagnostics
from memdiff.methods.experience import Round
from memdiff.methods.scoring import Rows, Scored
from memdiff.models.policy import Policy, with_noise
from memdiff.runtime.placement import numbers_on
from memdiff.runtime.vjp import Pieces, Pull

PullBack = Callable[[Policy, torch.Tensor, Rows], Scored]  # x_0 to its scores and d loss / d x_0


@dataclass(frozen=True)
class Sweep:
    """How a gradient goes back through the chain.

    `costate_clip` bounds the L2 norm of every image's d loss_i / d x_k: the gradient is no longer exact where it bites.
    `base_distance` is the weight of `pull_to_base` at every step that trains.
    """

    pieces: Pieces
    diagnostics: Diagnostics
    kept_steps: int = 0
    costate_clip: float | None = None
    base_distance: float = 0.0
    states_on_host: bool = False

    def run(
        self, policy: Policy, this_round: Round, rows: Rows, x_BCHW: torch.Tensor, *, begin: int, pull_back: PullBack
    ) -> Scored:
        """From x, the state before step `begin`, to x_0, to its loss, and back to each row's own start."""
        end = policy.schedule.steps
        first = next((step for step in range(min(rows.starts), end) if policy.trains(step)), end)
        states = self._states(policy, rows)
        kept: dict[int, Pull] = {}
        with this_round.clock.phase("rollout"):
            for step in range(begin, end):
                if step >= first:
                    states.write(step - first, range(states.images), x_BCHW)
                if step >= max(first, end - self.kept_steps):
                    # The first step's x is given: nothing asks for its costate.
                    mean_BCHW, kept[step] = self._piece(
                        policy, rows, x_BCHW.detach().requires_grad_(step > first), step
                    )
                else:
                    with torch.no_grad():
                        mean_BCHW = policy.mean(x_BCHW, [step] * len(rows.images), rows.prompts)
                x_BCHW = with_noise(policy.schedule, this_round.batch.noise, mean_BCHW, step, rows.images)
                this_round.advance(rows.count)
        with this_round.clock.phase("reward"):
            scored = pull_back(policy, x_BCHW, rows)
        with this_round.clock.phase("train"):
            costate_BCHW: torch.Tensor | None = scored.costate_BCHW
            for step in reversed(range(first, end)):
                assert costate_BCHW is not None, "only the first step passes nothing on"
                begun = [row for row in range(rows.count) if rows.starts[row] <= step]
                steps = [step] * len(rows.images)
                costate_BCHW = self.bounded(_of(costate_BCHW, begun), rows)
                self.diagnostics.costate(steps, costate_BCHW, rows, begun)
                pull = kept.pop(step, None)
                if pull is None:
                    x_BCHW = states.state(step - first).requires_grad_(step > first)
                    _, pull = self._piece(policy, rows, x_BCHW, step)
                costate_BCHW = pull(costate_BCHW)
                if self.base_distance and policy.trains(step):
                    self.pull_to_base(policy, rows, states.state(step - first), steps, begun)
                this_round.advance(len(begun))
        return scored

    def _states(self, policy: Policy, rows: Rows) -> Trajectory:
        """What is recomputed from: x before each differentiated step, in fp32."""
        return Trajectory(
            steps=max(0, policy.schedule.steps - min(rows.starts) - 1),
            images=len(rows.images),
            shape=policy.shape,
            dtype=torch.promote_types(policy.dtype, torch.float32),
            device=policy.device,
            on_host=self.states_on_host,
        )

    def pull_to_base(
        self, policy: Policy, rows: Rows, x_BCHW: torch.Tensor, steps: Sequence[int], taking_part: Sequence[int]
    ) -> None:
        """Adds the gradient of base_distance * 1/N sum_i mean_CHW (prediction - prediction before training)^2.

        The states are taken as they are, as in DPOK's KL: the distance has no costate. Guided models: the guided ones.
        """
        with torch.no_grad(), policy.base():
            base_BCHW = policy.predict(x_BCHW, steps, rows.prompts)

        def distance(x_BCHW: torch.Tensor) -> torch.Tensor:
            return (policy.predict(x_BCHW, steps, rows.prompts) - base_BCHW).square().flatten(start_dim=1).mean(dim=1)

        distance_B, pull = self.pieces.vjp(distance, x_BCHW.detach(), keep=True)
        weight = self.base_distance * rows.weight
        weights = [weight if row in taking_part else 0.0 for row in range(len(rows.images))]
        weight_B = numbers_on(distance_B.device, weights, dtype=distance_B.dtype)
        self.diagnostics.distance(distance_B, taking_part)
        pull(weight_B)

    def _piece(self, policy: Policy, rows: Rows, x_BCHW: torch.Tensor, step: int) -> tuple[torch.Tensor, Pull]:
        """x_k -> mu_theta(x_k, k), its graph kept."""
        steps = [step] * len(rows.images)
        return self.pieces.vjp(
            lambda x: policy.mean(x, steps, rows.prompts),
            x_BCHW,
            keep=True,
            on_gradients=self.diagnostics.gradient(step, rows),
        )

    def bounded(self, costate_BCHW: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The costate, every image's at most `costate_clip` long in units of its own loss."""
        if self.costate_clip is None:
            return costate_BCHW
        norm_B = costate_BCHW.flatten(start_dim=1).norm(dim=1) / rows.weight
        factor_B = (self.costate_clip / norm_B).clamp(max=1)  # zero costates: inf, clamped to 1
        return costate_BCHW * factor_B.view(-1, 1, 1, 1)


def _of(costate_BCHW: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The costate of these rows, zero for the others."""
    kept = [float(row in rows) for row in range(len(costate_BCHW))]
    return costate_BCHW * numbers_on(costate_BCHW.device, kept, dtype=costate_BCHW.dtype).view(-1, 1, 1, 1)
