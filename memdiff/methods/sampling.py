"""A round's images, from noise to x_0, without a graph.

Shapes: n images of this rank, C H W of x_t.
"""

from collections.abc import Callable

import torch

from memdiff.memory.knobs import Knobs
from memdiff.methods.experience import Batch
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
