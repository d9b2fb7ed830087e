"""Recipe section `memory`. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from memdiff.section import Int, Section

Auto = Literal["auto"]
Count = Annotated[Int, Field(ge=1)]


class MemoryConfig(Section):
    """What runs where, and in how large pieces. None of it changes a gradient beyond rounding."""

    micro_batch: Count | Auto = Field(default="auto", description="Rows of one piece, a GPU.")
    rollout_batch: Count | Auto = Field(default="auto", description="Images denoised at once, a GPU.")
    activation_checkpointing: bool | Auto = Field(
        default="auto", description="Recompute the UNet's blocks in the backward: less memory, a third more time."
    )
    trajectory: Literal["auto", "gpu", "host"] = Field(
        default="auto", description="Where the stored x_t wait. host: pinned memory, non-blocking copies."
    )
    accumulators: Literal["auto", "gpu", "host"] = Field(default="auto", description="Where the fp32 gradients wait.")
    rewards: Literal["auto", "gpu", "cpu", "idle_off"] = Field(
        default="auto", description="Where rewards run. idle_off: on the GPU, and on the host while training."
    )
    offload_optimizer: bool | Auto = Field(
        default="auto", description="fp32 masters and optimizer states in host memory, stepped by the CPU."
    )
