"""The memory knobs of one run, every `auto` decided.

The rules for `auto` are written numbers, not a plan: a GPU's micro-batch comes from the bytes that one image of
google/ddpm-celebahq-256 takes in a full fine-tuning piece, scaled by pixels and precision.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

from memdiff.memory.config import MemoryConfig
from memdiff.models.config import ActivationCheckpointing, VaeCheckpointing

# fp16 activations of one 256x256 image in the celebahq UNet, forward and backward: live bytes counted on fake tensors.
BYTES_AN_IMAGE = {False: 1_056 * 2**20, True: 424 * 2**20}  # without and with blocks recomputed
REFERENCE_PIXELS = 256 * 256
SHARE_FOR_ACTIVATIONS = 0.8  # the rest: weights, accumulators, engine, fragmentation
LARGEST_ON_CPU = 64  # rows of a piece: larger ones leave the caches and gain nothing
LARGEST_ON_GPU = 512
LATENT_PIXELS_DECODED = 64 * 64  # at once where the decoder is differentiated: one image of 512 x 512
HOST_TRAJECTORY_BYTES = 2**30  # a trajectory above it waits in host memory

T = TypeVar("T")


@dataclass(frozen=True)
class Knobs:
    """What runs where, and in how large pieces."""

    micro_batch: int
    rollout_batch: int
    activation_checkpointing: ActivationCheckpointing  # what the backward through the UNet recomputes
    trajectory: Literal["gpu", "host"]  # where the stored x_t wait
    accumulators: Literal["gpu", "host"]  # where the fp32 gradients wait
    rewards: Literal["gpu", "cpu", "idle_off"]  # where they run; idle_off: on the GPU, on the host while training
    offload_optimizer: bool
    kept_steps: int = 0  # last steps whose graph is kept from the rollout, of methods that differentiate the chain
    decode_batch: int = 1  # images whose decoder graph lives at once
    guidance_passes: Literal[1, 2] = 1  # calls of the network for one guided prediction
    vae_checkpointing: VaeCheckpointing = "layers"  # what the backward through the decoder recomputes at a time
    idle_unet: Literal["gpu", "host"] = "gpu"  # where its frozen weights are while images are decoded and scored
    idle_decoder: Literal["gpu", "host"] = "gpu"  # and the decoder's while the chain runs
    one_pass: bool = False  # REINFORCE takes the images' gradients while it samples them


def resolve_knobs(
    config: MemoryConfig,
    *,
    pixels: int,
    element_bytes: int,
    images: int,
    states: int,
    channels: int,
    device_bytes: int | None,
) -> Knobs:
    """Decides every `auto`. `images` of this rank, `states` K+1 a chain; `device_bytes` is None on a CPU."""
    checkpointing = "none" if config.activation_checkpointing == "auto" else config.activation_checkpointing
    if device_bytes is None:
        micro_batch = max(1, min(LARGEST_ON_CPU, 4 * REFERENCE_PIXELS // pixels))
        rollout_batch = micro_batch
    else:
        image_bytes = BYTES_AN_IMAGE[checkpointing == "blocks"] * pixels / REFERENCE_PIXELS * element_bytes / 2
        micro_batch = max(1, min(LARGEST_ON_GPU, int(device_bytes * SHARE_FOR_ACTIVATIONS / image_bytes)))
        rollout_batch = min(4 * micro_batch, LARGEST_ON_GPU)
    trajectory_bytes = images * states * channels * pixels * element_bytes
    large = device_bytes is not None and trajectory_bytes > HOST_TRAJECTORY_BYTES
    return Knobs(
        micro_batch=_decide(config.micro_batch, micro_batch),
        rollout_batch=min(_decide(config.rollout_batch, rollout_batch), max(1, images)),
        activation_checkpointing=checkpointing,
        trajectory=("host" if large else "gpu") if config.trajectory == "auto" else config.trajectory,
        accumulators="gpu" if config.accumulators == "auto" else config.accumulators,
        rewards="gpu" if config.rewards == "auto" else config.rewards,
        offload_optimizer=_decide(config.offload_optimizer, False),
        kept_steps=_decide(config.kept_steps, 0),
        guidance_passes=1 if config.guidance_passes == "auto" else config.guidance_passes,
        vae_checkpointing="layers" if config.vae_checkpointing == "auto" else config.vae_checkpointing,
        one_pass=_decide(config.one_pass, False),
        idle_unet="host" if config.idle_parts == "leave" else "gpu",
        idle_decoder="host" if config.idle_parts == "leave" else "gpu",
        decode_batch=_decide(config.decode_batch, max(1, min(LARGEST_ON_CPU, LATENT_PIXELS_DECODED // pixels))),
    )


def idle_place(config: MemoryConfig) -> Literal["auto", "gpu", "host"]:
    """Where what is idle waits, in the words of the knobs."""
    places: dict[str, Literal["auto", "gpu", "host"]] = {"auto": "auto", "stay": "gpu", "leave": "host"}
    return places[config.idle_parts]


def _decide(value: T | str, otherwise: T) -> T:
    return otherwise if isinstance(value, str) else value
