"""A round's images, from noise to x_0, without a graph.

Shapes: n images of this rank, C H W of x_t.
"""

from collections.abc import Callable

import torch

from memdiff.chain.trajectory import Trajectory
from memdiff.memory.knobs import Knobs
from memdiff.methods.experience import Batch, Round
from memdiff.models.policy import Policy, StoreState, rollout


def sample(
    policy: Policy,
    batch: Batch,
    knobs: Knobs,
    *,
    storage: torch.dtype,
    store: StoreState | None = None,
    on_step: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """x_0 of the batch: n C H W. `storage`, `store` and `on_step` as `rollout` has them."""
    return rollout(
        policy,
        batch.noise,
        batch.images,
        batch.prompts,
        batch=knobs.rollout_batch,
        storage=storage,
        store=store,
        on_step=on_step,
    )


def wide(policy: Policy) -> torch.dtype:
    """What keeps the last digits of a state: the policy's own dtype, fp32 at least."""
    return torch.promote_types(policy.dtype, torch.float32)


def new_trajectory(policy: Policy, images: int, knobs: Knobs, *, storage: torch.dtype) -> Trajectory:
    """Room for every state of so many images, on the GPU or the host as the knobs say."""
    return Trajectory(
        steps=policy.schedule.steps,
        images=images,
        shape=policy.shape,
        dtype=storage,
        device=policy.device,
        on_host=knobs.trajectory == "host",
    )


def sample_trajectory(
    policy: Policy, this_round: Round, knobs: Knobs, *, storage: torch.dtype
) -> tuple[torch.Tensor, Trajectory]:
    """x_0 of the round's images, n C H W, and every state on the way, as `storage`. A phase of the round's clock."""
    trajectory = new_trajectory(policy, len(this_round.batch.images), knobs, storage=storage)
    with this_round.clock.phase("rollout"):
        x_0 = sample(
            policy, this_round.batch, knobs, storage=storage, store=trajectory.write, on_step=this_round.advance
        )
    return x_0, trajectory
