"""Suite `cpu`: the embedded models under every method, and every memory knob alone. Minutes on two cores."""

from collections.abc import Mapping
from typing import Any

from benchmarks.case import Case, overlaid
from benchmarks.cases.recipes import DIGITS, DIGITS_TEXT

METHODS: Mapping[str, Mapping[str, Any]] = {
    "reinforce": {"kind": "reinforce"},
    "ddpo": {"kind": "reinforce", "inner_updates": 2, "ratio_clip": 1e-2, "advantage_clip": 5.0},
    "dpok": {"kind": "reinforce", "kl_weight": 0.01},
    "draft_1": {"kind": "draft", "last_steps": 1},
    "draft_lv": {"kind": "draft", "last_steps": 1, "noise_samples": 2},
    "draft": {"kind": "draft", "last_steps": "all"},
    "alignprop": {"kind": "alignprop"},
    "refl": {"kind": "refl", "first_step": 15, "last_step": 19, "target": None},
}

# Of REINFORCE on `digits`, all of the UNet trained.
REINFORCE_KNOBS: Mapping[str, Mapping[str, Any]] = {
    "resident": {},
    "micro_batch_64": {"memory": {"micro_batch": 64}},
    "micro_batch_4": {"memory": {"micro_batch": 4}},
    "blocks": {"memory": {"activation_checkpointing": "blocks"}},
    "offload_optimizer": {"memory": {"offload_optimizer": True}},
    "bits_8": {"optimizer": {"bits": 8}},
    "lora": {"adapter": {"rank": 4}},
    "lora_one_pass": {"adapter": {"rank": 4}, "memory": {"one_pass": True}},
}

# Of DRaFT through the whole chain on `digits_text`, LoRA.
DRAFT_KNOBS: Mapping[str, Mapping[str, Any]] = {
    "resident": {},
    "micro_batch_4": {"memory": {"micro_batch": 4}},
    "micro_batch_1": {"memory": {"micro_batch": 1}},
    "kept_steps_12": {"memory": {"kept_steps": 12}},
    "kept_steps_25": {"memory": {"kept_steps": 25}},
    "feed_forwards": {"memory": {"activation_checkpointing": "feed_forwards"}},
    "blocks": {"memory": {"activation_checkpointing": "blocks"}},
    "guidance_passes_2": {"memory": {"guidance_passes": 2}},
    "vae_blocks": {"memory": {"vae_checkpointing": "blocks"}},
    "vae_layers": {"memory": {"vae_checkpointing": "layers"}},
    "decode_batch_1": {"memory": {"decode_batch": 1}},
}


def cases() -> list[Case]:
    """In the order of the tables."""
    all_cases = [
        _case(f"digits/{name}", DIGITS, {"method": method}, table="methods", model="digits")
        for name, method in METHODS.items()
    ]
    all_cases += [
        _case(f"digits_text/{name}", DIGITS_TEXT, {"method": METHODS[name]}, table="methods", model="digits_text")
        for name in ("reinforce", "draft_1", "draft", "alignprop", "refl")
    ]
    all_cases += [
        _case(f"knobs_reinforce/{name}", DIGITS, changes, table="knobs_reinforce", model="digits")
        for name, changes in REINFORCE_KNOBS.items()
    ]
    all_cases += [
        _case(f"knobs_draft/{name}", DIGITS_TEXT, changes, table="knobs_draft", model="digits_text")
        for name, changes in DRAFT_KNOBS.items()
    ]
    timelines = {"recomputed": {}, "kept": {"memory": {"kept_steps": 25}}}
    return all_cases + [
        _case(f"timeline/{name}", DIGITS_TEXT, changes, table="timeline", model="digits_text", timeline=True)
        for name, changes in timelines.items()
    ]


def _case(
    name: str, recipe: Mapping[str, Any], changes: Mapping[str, Any], *, table: str, model: str, timeline: bool = False
) -> Case:
    changed = overlaid(recipe, changes)
    changed["method"] = changes.get("method", recipe["method"])  # whole: the keys of one method are not another's
    settings = {"recipe": changed, "updates": 3, "warmup": 1, "timeline": timeline}
    return Case("cpu", name, "training", settings, about={"table": table, "model": model})
