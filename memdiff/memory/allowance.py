"""What torch's allocator reserves beyond live bytes, from measured runs. No torch.

Each row: a shipped recipe with fewer steps and images, the planner's own choice, run by the training code, fp16, one
rank, random weights, at commit 3ded396 on one H200 (torch 2.11, the allocator capped at 14.75 GiB, `PYTORCH_ALLOC_CONF`
not set). Reported at that commit and not reproduced since. `live_gib` is what the plan counted, `reserved_gib` the most
that the allocator held. Since then every command lets segments expand (memdiff.runtime.cuda_allocator), and cached
blocks are freed when a network leaves (memdiff.memory.offload): both are to lower the last rows, which stand until they
are measured again.
"""

from dataclasses import dataclass
from functools import cache

from memdiff.memory.gpus import WORKSPACE_BYTES
from memdiff.memory.knobs import Knobs
from memdiff.runtime.units import GIB


@dataclass(frozen=True)
class Row:
    """One measured run: what its plan counted and what the allocator held."""

    run: str
    live_gib: float
    reserved_gib: float

    @property
    def share(self) -> float:
        """Reserved beyond the live bytes and the libraries' workspace, of the live bytes."""
        return (self.reserved_gib - WORKSPACE_BYTES / GIB) / self.live_gib - 1


EVERYTHING_STAYS = (
    Row("sd15_alignprop, 20 steps, 16 kept, feed-forwards run again", 13.47, 14.04),
    Row("sd15, a budget of 4.0 GiB", 3.79, 3.97),
    Row("sd15, 5 kept", 7.99, 8.54),
    Row("sdxl_draft, 4 steps, steps alone run again", 13.79, 14.51),
)
BLOCKS_AND_KEPT_STEPS = (
    Row("sdxl, blocks run again, 4 kept", 11.59, 13.46),
    Row("sdxl, blocks run again, 3 kept", 10.79, 12.71),
)
NETWORKS_MOVE = (  # by live bytes, rising
    Row("sd15, a budget of 2.6 GiB, idle parts off, optimizer offloaded", 2.45, 3.32),
    Row("sdxl, a budget of 7.0 GiB, idle parts off", 6.57, 10.94),
)


def networks_move(knobs: Knobs) -> bool:
    """Whether some network leaves the GPU while the run goes on."""
    return knobs.idle_unet == "host" or knobs.idle_decoder == "host" or knobs.rewards == "idle_off"


def allowance_share(live: int, knobs: Knobs) -> float:
    """Of so many live bytes: the largest measured in the knobs' situation, between two rows in proportion."""
    share = _largest_share(blocks_and_kept=knobs.activation_checkpointing == "blocks" and knobs.kept_steps > 0)
    if not networks_move(knobs):
        return share
    few, many = NETWORKS_MOVE
    way = min(1.0, max(0.0, (live / GIB - few.live_gib) / (many.live_gib - few.live_gib)))
    return max(share, few.share + way * (many.share - few.share))


@cache
def _largest_share(*, blocks_and_kept: bool) -> float:
    return max(row.share for row in EVERYTHING_STAYS + (BLOCKS_AND_KEPT_STEPS if blocks_and_kept else ()))


def allowance_bytes(live: int, knobs: Knobs) -> int:
    """What the allocator is expected to hold beyond so many live bytes at its fullest."""
    return int(live * allowance_share(live, knobs)) + WORKSPACE_BYTES
