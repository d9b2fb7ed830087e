"""Which recipes are measured on which machine, and what is changed in them so that they take minutes. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memdiff.runtime.units import GIB

MOST_RANKS = 4
SDXL_CARD_BYTES = 14 * GIB
SDXL_HOST_BYTES = 8 * GIB  # its plan has 4.4 GiB, CUDA's own among them
EVERYTHING_STAYS: Mapping[str, Any] = {
    "activation_checkpointing": "none", "kept_steps": 0, "micro_batch": 2, "rollout_batch": 2, "decode_batch": 2,
    "one_pass": False, "trajectory": "gpu", "accumulators": "gpu", "offload_optimizer": False, "idle_unet": "gpu",
    "idle_decoder": "gpu", "rewards": "gpu", "guidance_passes": 1, "vae_checkpointing": "none",
}  # fmt: skip
TWO_ROUNDS: Mapping[str, Any] = {"run.rounds": 2, "evaluate.every": 0}


@dataclass(frozen=True)
class RecipeCase:
    """A shipped recipe with `changes` laid over it. `note` says why it stands in another's place."""

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def cases_for(card_bytes: Sequence[int], host_bytes: int) -> list[RecipeCase]:
    """For cards of these sizes and a host of that one; without a card the models that ship."""
    if not card_bytes:
        changes = {
            **TWO_ROUNDS, "run.images_per_round": 4, "sampler.steps": 4, "model.precision": "fp32",
            "memory": dict(EVERYTHING_STAYS),
        }  # fmt: skip
        return [RecipeCase("digits_text_alignprop", changes), RecipeCase("digits_reinforce", changes)]
    small = {**TWO_ROUNDS, "run.images_per_round": 4, "sampler.steps": 20, "model.precision": "fp16"}
    cases = [RecipeCase("sd15_alignprop_t4", small), RecipeCase("sd15_ddpo_t4", small)]
    if min(card_bytes) >= SDXL_CARD_BYTES and host_bytes >= SDXL_HOST_BYTES:
        return [*cases, RecipeCase("sdxl_draft_t4", {**small, "run.images_per_round": 1, "sampler.steps": 4})]
    note = (
        f"celebahq_reinforce in the place of SDXL, which takes {SDXL_CARD_BYTES / GIB:.0f} GiB of a card and "
        f"{SDXL_HOST_BYTES / GIB:.0f} GiB of the host here"
    )
    return [*cases, RecipeCase("celebahq_reinforce", {**small, "run.images_per_round": 16, "sampler.steps": 10}, note)]


# An update's gradient has to be fp32, with pieces of one shape on all ranks: 16 images are whole pieces of two on 1, 2
# and 4 ranks. The checkpoint after the first round holds it.
PARITY_RECIPE = "digits_reinforce"
PARITY_CHANGES: Mapping[str, Any] = {
    "run.rounds": 2, "run.save_every": 1, "run.keep_checkpoints": 2, "run.images_per_round": 16, "evaluate.every": 0,
    "sampler.steps": 5, "model.precision": "fp32", "optimizer.bits": 32, "memory.micro_batch": 2,
    "memory.rollout_batch": 2, "memory.offload_optimizer": False,
}  # fmt: skip


def world_sizes(cards: int, gpus: int | None) -> list[int]:
    """One rank, then several: up to `gpus`, which is every card there is, at most four, or two CPU ranks."""
    most = gpus or (min(cards, MOST_RANKS) if cards else 2)
    return sorted({1, *(size for size in (2, 4) if size <= most), most})
