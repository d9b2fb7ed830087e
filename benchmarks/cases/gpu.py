"""Suite `gpu`: the real architectures with random weights on a CUDA device, held to a T4's 14.75 GiB, fp16.

Needs a GPU of at least that size. The allocator is capped by set_per_process_memory_fraction, so that a larger card
runs out of memory where a T4 would (its kernels and seconds are the card's own). Out of memory is a row. `plan` stands
beside every measured peak; `largest` searches the largest micro-batch that runs.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.case import Case
from benchmarks.cases.plan import RESIDENT_ONE

CAP_GIB = 14.75
LEAN = {"vae_checkpointing": "layers"}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "resident": {},
    "vae_layers": LEAN,
    "feed_forwards": {**LEAN, "activation_checkpointing": "feed_forwards"},
    "blocks": {**LEAN, "activation_checkpointing": "blocks"},
    "kept_steps_5": {**LEAN, "kept_steps": 5},
    "micro_batch_4": {**LEAN, "micro_batch": 4, "rollout_batch": 4},
    "idle_off": {
        **LEAN, "activation_checkpointing": "blocks", "idle_unet": "host", "idle_decoder": "host",
        "rewards": "idle_off", "accumulators": "host", "trajectory": "host",
    },
}  # fmt: skip
CELEBAHQ: Mapping[str, Mapping[str, Any]] = {
    "micro_batch_1": {},
    "micro_batch_12": {"micro_batch": 12, "rollout_batch": 32, "rewards": "idle_off", "trajectory": "host"},
    "checkpointed_24": {
        "micro_batch": 24, "rollout_batch": 32, "rewards": "idle_off", "trajectory": "host",
        "activation_checkpointing": "blocks",
    },
    "offload_optimizer": {"micro_batch": 8, "rollout_batch": 32, "offload_optimizer": True},
}  # fmt: skip
RECIPES = {
    "sd15_alignprop_t4": (SETTINGS, 4),
    "sdxl_draft_t4": (SETTINGS, 1),
    "celebahq_reinforce": (CELEBAHQ, 24),
}


def cases() -> list[Case]:
    """By recipe, then setting, then the search."""
    all_cases = []
    for recipe, (settings, images) in RECIPES.items():
        all_cases += [_case(recipe, name, {**RESIDENT_ONE, **knobs}, images) for name, knobs in settings.items()]
        lean = {**RESIDENT_ONE, **LEAN}
        all_cases.append(_case(recipe, "largest", lean, images, largest=True))
        all_cases.append(
            _case(recipe, "largest_checkpointed", {**lean, "activation_checkpointing": "blocks"}, images, largest=True)
        )
    return all_cases


def _case(recipe: str, name: str, memory: Mapping[str, Any], images: int, *, largest: bool = False) -> Case:
    settings = {
        "recipe_file": f"launch/recipes/{recipe}.yaml",
        "changes": {
            "memory": dict(memory), "evaluate": {"every": 0}, "model": {"precision": "fp16"},
            "run": {"images_per_round": images},
        },
        "cap_gib": CAP_GIB, "largest": largest, "updates": 2, "warmup": 1,
    }  # fmt: skip
    return Case("gpu", f"{recipe}/{name}", "untrained", settings, about={"recipe": recipe, "setting": name})
