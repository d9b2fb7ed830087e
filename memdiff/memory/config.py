"""Recipe section `memory`. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from memdiff.models.config import ActivationCheckpointing
from memdiff.section import Int, Section

Auto = Literal["auto"]
Count = Annotated[Int, Field(ge=1)]


class MemoryConfig(Section):
    """What runs where, and in how large pieces. None of it changes a gradient beyond rounding."""

    micro_batch: Count | Auto = Field(default="auto", description="Rows of one piece, a GPU.")
    rollout_batch: Count | Auto = Field(default="auto", description="Images denoised at once, a GPU.")
    activation_checkpointing: ActivationCheckpointing | Auto = Field(
        default="auto",
        description="What of the UNet the backward recomputes: less memory, more time (blocks: a third).",
    )
    trajectory: Literal["auto", "gpu", "host"] = Field(
        default="auto", description="Where the stored x_t wait. host: pinned memory, non-blocking copies."
    )
    accumulators: Literal["auto", "gpu", "host"] = Field(default="auto", description="Where the fp32 gradients wait.")
    rewards: Literal["auto", "gpu", "cpu", "idle_off"] = Field(
        default="auto", description="Where rewards run. idle_off: on the GPU, and on the host while training."
    )
    kept_steps: Annotated[Int, Field(ge=0)] | Auto = Field(
        default="auto",
        description="Last steps of the chain whose graph is kept from the rollout, not made again. auto: 0.",
    )
    one_pass: bool | Auto = Field(
        default="auto",
        description="REINFORCE: take each image's gradient while it is sampled, and weigh it once rewards are known: a "
        "forward less a step. Needs an fp32 copy of what is trained for each image; without an adapter image by "
        "image. auto: where the plan finds it faster; on a CPU no.",
    )
    decode_batch: Count | Auto = Field(
        default="auto",
        description="Images decoded at once where the decoder is differentiated. auto: 1 from 512x512 on.",
    )
    idle_parts: Literal["auto", "stay", "leave"] = Field(
        default="auto",
        description="leave: frozen weights of the UNet wait on the host while images are decoded and scored, the "
        "decoder's while the chain runs.",
    )
    offload_optimizer: bool | Auto = Field(
        default="auto", description="fp32 masters and optimizer states in host memory, stepped by the CPU."
    )
    guidance_passes: Literal[1, 2] | Auto = Field(
        default="auto", description="The two branches of guidance in one call of the network, or one after the other."
    )
    vae_checkpointing: Literal["none", "blocks", "layers"] | Auto = Field(
        default="auto", description="What the backward through the VAE's decoder recomputes at a time. auto: layers."
    )
