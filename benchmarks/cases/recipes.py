"""Recipes that several suites vary, as plain data. Every memory knob is said, so that no `auto` changes a row."""

from collections.abc import Mapping
from typing import Any

RESIDENT: Mapping[str, Any] = {
    "micro_batch": 16, "rollout_batch": 16, "activation_checkpointing": "none", "trajectory": "gpu",
    "accumulators": "gpu", "rewards": "gpu", "kept_steps": 0, "decode_batch": 16, "one_pass": False,
    "idle_unet": "gpu", "idle_decoder": "gpu", "offload_optimizer": False, "guidance_passes": 1,
    "vae_checkpointing": "none",
}  # fmt: skip
"""Nothing recomputed but steps, nothing moved."""

_RUN = {"evaluate": {"every": 0}, "optimizer": {"learning_rate": 1e-5}}

DIGITS: Mapping[str, Any] = {
    "model": {"kind": "embedded", "name": "digits", "precision": "fp32"},
    "sampler": {"steps": 25, "eta": 1.0},
    "method": {"kind": "reinforce"},
    "reward": [{"kind": "digits", "mode": "probability"}],
    "memory": RESIDENT,
    "run": {"rounds": 1, "images_per_round": 16},
    **_RUN,
}
"""The embedded unconditional model, all of its UNet trained."""

DIGITS_TEXT: Mapping[str, Any] = {
    **DIGITS,
    "model": {"kind": "embedded", "name": "digits_text", "precision": "fp32"},
    "adapter": {"rank": 4},
    "sampler": {"steps": 25, "eta": 1.0, "guidance": 3.0},
    "prompts": ["three", "a thin seven", "a thick two", "nine"],
    "method": {"kind": "draft", "last_steps": "all"},
}
"""The embedded text-to-image model: latents, guidance, LoRA."""
