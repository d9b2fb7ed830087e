"""How a model is run and trained, besides what it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from memdiff.models.config import ActivationCheckpointing, AdapterConfig, VaeCheckpointing


@dataclass(frozen=True)
class ModelOptions:
    """One value from the recipe to the denoiser. What a model has no part for is not looked at."""

    dtype: torch.dtype = torch.float32  # of the UNet and the text encoders
    adapter: AdapterConfig | None = None  # None: the UNet itself is trained
    trained_modules: Sequence[str] | None = None  # of the UNet without an adapter; None: all of it
    activation_checkpointing: ActivationCheckpointing = "none"  # what the backward through the UNet recomputes
    guidance_passes: Literal[1, 2] = 1  # calls of the network for one guided prediction
    vae_checkpointing: VaeCheckpointing = "none"  # what the backward through the decoder recomputes at a time
    channels_last: bool = False  # how the UNet's images and frozen kernels lie
    keep_base: bool = False  # the untrained weights, in host memory where all of the UNet is trained
