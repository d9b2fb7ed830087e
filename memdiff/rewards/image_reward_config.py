"""Recipe part `image_reward`. No torch."""

from typing import Literal

from pydantic import Field

from memdiff.rewards.config import Part


class ImageRewardConfig(Part):
    """ImageReward (Xu et al. 2023): how well people would like an image for its prompt; about -2.5 to 2.5."""

    kind: Literal["image_reward"]
    path: str = Field(
        default="THUDM/ImageReward", min_length=1, description="A hub id, a folder with ImageReward.pt, or the file."
    )
    prompt: str | None = Field(
        default=None, min_length=1, description="One prompt for all images. None: the prompts of the images."
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub. None: the default branch."
    )
    precision: Literal["auto", "fp16", "fp32"] = Field(
        default="auto", description="Of the transformers; scores are fp32. auto: fp16 on a CUDA device, fp32 on a CPU."
    )
    checkpointing: bool = Field(
        default=False, description="Recompute layer by layer in the backward pass: less memory, a third more time."
    )
