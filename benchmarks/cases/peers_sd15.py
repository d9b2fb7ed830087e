"""Suite `peers_sd15`: AlignProp on Stable Diffusion 1.5's shape, simulated. 512 x 512, 50 guided steps, batch 1, fp16.

TRL's loop and a bare one beside memdiff's plan, the same reward (LAION aesthetic), by the same ledger.
"""

from typing import Any

from benchmarks.case import Case
from benchmarks.cases.plan import RESIDENT_ONE

LOOP = {"steps": 50, "batch": 1, "guidance": 7.5}
MEMDIFF: dict[str, dict[str, Any]] = {
    "steps recomputed": {},
    "steps recomputed, decoder by layers": {"vae_checkpointing": "layers"},
    "steps and feed-forwards recomputed, decoder by layers": {
        "vae_checkpointing": "layers", "activation_checkpointing": "feed_forwards",
    },
    "steps and blocks recomputed, decoder by layers": {
        "vae_checkpointing": "layers", "activation_checkpointing": "blocks",
    },
    "the same, idle parts off the GPU": {
        "vae_checkpointing": "layers", "activation_checkpointing": "blocks",
        "idle_unet": "host", "idle_decoder": "host", "rewards": "idle_off",
    },
}  # fmt: skip


def cases() -> list[Case]:
    """The peers, then memdiff from the plainest setting to the smallest."""
    peer_cases = [
        Case("peers_sd15", "TRL's loop: each UNet call checkpointed", "simulated_loop", {**LOOP, "again": True}),
        Case("peers_sd15", "bare loop: everything kept", "simulated_loop", {**LOOP, "again": False}),
    ]
    changes = {"method": {"truncation": "fixed"}, "run": {"images_per_round": 1}, "evaluate": {"every": 0}}
    return peer_cases + [
        Case(
            "peers_sd15", f"memdiff: {name}", "plan",
            {
                "recipe_file": "launch/recipes/sd15_alignprop_t4.yaml",
                "changes": {**changes, "memory": {**RESIDENT_ONE, **memory}},
                "ranks": 1, "gpu": "t4", "budget_gib": None, "precision": "fp16",
            },
        )
        for name, memory in MEMDIFF.items()
    ]  # fmt: skip
