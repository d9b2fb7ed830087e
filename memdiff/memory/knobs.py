"""The memory knobs: one table for a recipe's section `memory` and for what a run reads, every `auto` decided. No torch.

A row is a field with a `Knob`. Schema, search, advice and tables follow from the rows: to add a knob, add a row and the
code that obeys it. The search goes through the rows in their order, and of equally good settings takes the first.

The rules for `auto` without a plan are written numbers: a GPU's micro-batch comes from the bytes that one image of
google/ddpm-celebahq-256 takes in a full fine-tuning piece, scaled by pixels and precision.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Generic, Literal, Never, TypeVar

from pydantic import ConfigDict, Field, model_validator

from memdiff.models.config import ActivationCheckpointing, VaeCheckpointing
from memdiff.runtime.section import Int, Section

# fp16 activations of one 256x256 image in the celebahq UNet, forward and backward: live bytes counted on fake tensors.
BYTES_AN_IMAGE = {False: 1_056 * 2**20, True: 424 * 2**20}  # without and with blocks recomputed
REFERENCE_PIXELS = 256 * 256
SHARE_FOR_ACTIVATIONS = 0.8  # the rest: weights, accumulators, engine, fragmentation
LARGEST_ON_CPU = 64  # rows of a piece: larger ones leave the caches and gain nothing
LARGEST_ON_GPU = 512
LATENT_PIXELS_DECODED = 64 * 64  # at once where the decoder is differentiated: one image of 512 x 512
HOST_TRAJECTORY_BYTES = 2**30  # a trajectory above it waits in host memory

Auto = Literal["auto"]
Count = Annotated[Int, Field(ge=1, le=10**6)]
Place = Literal["gpu", "host"]
A = TypeVar("A")  # what may stand in a value's place: "auto" in a recipe, nothing where a run reads it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Situation:
    """What a recipe and its model come to, as far as the rows ask."""

    direct: bool  # the reward itself is differentiated
    may_take_one_pass: bool  # the gradient is the images' own gradients, each times one number
    most_kept: int  # steps whose graph the method can use to keep
    frozen: bool  # some of the UNet isn't trained
    decoder: bool
    rewards: bool  # some reward is a network


@dataclass(frozen=True)
class Knob:
    """What a row says besides its type and its description."""

    plain: Any  # what `auto` is where neither a plan nor a rule decides it
    choices: tuple[Any, ...] = ()  # of the search, from cheapest in time to smallest in bytes; none: `plain` alone
    needs: Callable[[Situation], bool] = lambda _: True  # where there is something to choose
    turns: Callable[[int, Situation], tuple[int, ...]] | None = None  # of a number: the values that advice looks at
    measured: bool = False  # the networks differ: each value has short rounds of its own
    rule: str = ""  # what `auto` is without a plan, where a rule decides it

    def others(self, value: Any, situation: Situation) -> tuple[Any, ...]:
        """The values that advice looks at. None where the recipe's is no choice of the search."""
        if not self.needs(situation):
            return ()
        if self.turns is not None:
            return tuple(other for other in self.turns(value, situation) if other != value)
        return tuple(choice for choice in self.choices if choice != value) if value in self.choices else ()


def _auto(description: str) -> Any:
    return Field(default="auto", validate_default=True, description=description)


def _half(value: int, _: Situation) -> tuple[int, ...]:
    return (max(1, value // 2),)


def _say_auto(schema: dict[str, Any]) -> None:
    for name, knob in TABLE.items():
        plan = "on GPUs what the plan finds fastest, else " if knob.choices or knob.turns else ""
        schema["properties"][name]["description"] += f" auto: {plan}{knob.rule or word(knob.plain)}."


class KnobTable(Section, Generic[A]):
    """What runs where, and in how large pieces. None of it changes a gradient beyond rounding."""

    micro_batch: Annotated[Count | A, Knob(1, turns=_half, rule="by the images' size")] = _auto(
        "Rows of one piece, a GPU."
    )
    rollout_batch: Annotated[
        Count | A, Knob(1, turns=_half, needs=lambda has: not has.direct, rule="one to four micro-batches")
    ] = _auto("Images denoised at once, a GPU.")
    activation_checkpointing: Annotated[
        ActivationCheckpointing | A, Knob("none", ("none", "feed_forwards", "blocks"), measured=True)
    ] = _auto("What of the UNet the backward recomputes: less memory, more time (blocks: a third).")
    one_pass: Annotated[bool | A, Knob(False, (False, True), needs=lambda has: has.may_take_one_pass)] = _auto(
        "REINFORCE: take each image's gradient while it is sampled, and weigh it once rewards are known: a forward "
        "less a step. Needs an fp32 copy of what is trained for each image; without an adapter image by image."
    )
    trajectory: Annotated[Place | A, Knob("gpu", ("gpu", "host"), rule="gpu up to 1 GiB, then host")] = _auto(
        "Where the stored x_t wait. host: pinned memory, non-blocking copies."
    )
    accumulators: Annotated[Place | A, Knob("gpu", ("gpu", "host"))] = _auto("Where the fp32 gradients wait.")
    offload_optimizer: Annotated[bool | A, Knob(False, (False, True))] = _auto(
        "fp32 masters and optimizer states in host memory, stepped by the CPU."
    )
    idle_unet: Annotated[Place | A, Knob("gpu", ("gpu", "host"), needs=lambda has: has.frozen)] = _auto(
        "Where frozen weights of the UNet are while images are decoded and scored."
    )
    idle_decoder: Annotated[Place | A, Knob("gpu", ("gpu", "host"), needs=lambda has: has.decoder)] = _auto(
        "Where the VAE's decoder is while the chain runs."
    )
    rewards: Annotated[
        Literal["gpu", "cpu", "idle_off"] | A, Knob("gpu", ("gpu", "idle_off"), needs=lambda has: has.rewards)
    ] = _auto("Where rewards run. idle_off: on the GPU, and on the host while training.")
    kept_steps: Annotated[
        Annotated[Int, Field(ge=0, le=1000)] | A,
        Knob(0, turns=lambda _, has: (0, has.most_kept), needs=lambda has: has.most_kept > 0),
    ] = _auto("Last steps of the chain whose graph is kept from the rollout, not made again.")
    decode_batch: Annotated[Count | A, Knob(1, rule="1 on GPUs, else as many as make 512x512 pixels")] = _auto(
        "Images decoded at once where the decoder is differentiated."
    )
    guidance_passes: Annotated[Literal[1, 2] | A, Knob(1, measured=True)] = _auto(
        "The two branches of guidance in one call of the network, or one after the other."
    )
    vae_checkpointing: Annotated[VaeCheckpointing | A, Knob("layers", measured=True)] = _auto(
        "What the backward through the VAE's decoder recomputes at a time."
    )


class MemoryConfig(KnobTable[Auto]):
    """What runs where, and in how large pieces. None of it changes a gradient beyond rounding."""

    model_config = ConfigDict(json_schema_extra=_say_auto)

    @model_validator(mode="before")
    @classmethod
    def _idle_parts(cls, raw: Any) -> Any:
        """Reads the key that `idle_unet` and `idle_decoder` stood in for together."""
        if not isinstance(raw, dict) or "idle_parts" not in raw:
            return raw
        place = {"auto": "auto", "stay": "gpu", "leave": "host"}.get(str(raw["idle_parts"]))
        if place is None:
            raise ValueError(f"idle_parts is now idle_unet and idle_decoder, gpu or host; got {raw['idle_parts']!r}")
        if place != "auto":  # which is what they are without it, and stands in every run folder of that time
            tell_of_old_key(place)
        other_settings = {key: value for key, value in raw.items() if key != "idle_parts"}
        return {"idle_unet": place, "idle_decoder": place, **other_settings}


class Knobs(KnobTable[Never]):
    """Every `auto` decided: what a run reads."""


@cache
def tell_of_old_key(place: str) -> None:
    """Once a process, however often a recipe and the one that a run stored are read."""
    _log.warning(
        "memdiff: warning: memory.idle_parts is now memory.idle_unet and memory.idle_decoder; read as %s for both, "
        "where they are not given",
        place,
    )


TABLE: dict[str, Knob] = {
    name: next(said for said in field.metadata if isinstance(said, Knob))
    for name, field in KnobTable.model_fields.items()
}


def word(value: Any) -> str:
    """A value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def resolved(config: MemoryConfig, **autos: Any) -> Knobs:
    """What the section says, `autos` for what it leaves open, and the rows' plain values for the rest."""
    plain = {name: knob.plain for name, knob in TABLE.items()}
    said = {name: value for name in TABLE if (value := getattr(config, name)) != "auto"}
    return Knobs(**(plain | autos | said))


def resolve_by_rules(
    config: MemoryConfig,
    *,
    pixels: int,
    element_bytes: int,
    images: int,
    states: int,
    channels: int,
    device_bytes: int | None,
) -> Knobs:
    """Without a plan. `images` of this rank, `states` K+1 a chain; `device_bytes` is None on a CPU."""
    if device_bytes is None:
        micro_batch = max(1, min(LARGEST_ON_CPU, 4 * REFERENCE_PIXELS // pixels))
        rollout_batch = micro_batch
    else:
        blocks = config.activation_checkpointing == "blocks"
        image_bytes = BYTES_AN_IMAGE[blocks] * pixels / REFERENCE_PIXELS * element_bytes / 2
        micro_batch = max(1, min(LARGEST_ON_GPU, int(device_bytes * SHARE_FOR_ACTIVATIONS / image_bytes)))
        rollout_batch = min(4 * micro_batch, LARGEST_ON_GPU)
    trajectory_bytes = images * states * channels * pixels * element_bytes
    large = device_bytes is not None and trajectory_bytes > HOST_TRAJECTORY_BYTES
    knobs = resolved(
        config,
        micro_batch=micro_batch,
        rollout_batch=rollout_batch,
        trajectory="host" if large else "gpu",
        decode_batch=max(1, min(LARGEST_ON_CPU, LATENT_PIXELS_DECODED // pixels)),
    )
    return knobs.model_copy(update={"rollout_batch": min(knobs.rollout_batch, max(1, images))})
