"""Suite `plan`: simulated, on fake tensors. What the shipped recipes of real architectures would need on a T4.

`chosen` is what the planner picks for the card; `budget_*` for so many GiB; `resident_*` the same with every network on
the GPU all the time; other names what it picks for that variant of the recipe. `knob_*` starts from everything
resident, one image a piece, and turns one knob alone; `all` turns every knob that saves.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.case import Case
from benchmarks.cases.recipes import RESIDENT

RESIDENT_ONE: Mapping[str, Any] = {
    **RESIDENT, "micro_batch": 1, "rollout_batch": 1, "decode_batch": 1, "vae_checkpointing": "none",
}  # fmt: skip
EVERYTHING_STAYS: Mapping[str, Any] = {
    "idle_unet": "gpu",
    "idle_decoder": "gpu",
    "rewards": "gpu",
    "trajectory": "gpu",
    "accumulators": "gpu",
}
SAVING: Mapping[str, Mapping[str, Any]] = {
    "feed_forwards": {"activation_checkpointing": "feed_forwards"},
    "blocks": {"activation_checkpointing": "blocks"},
    "vae_checkpointing_blocks": {"vae_checkpointing": "blocks"},
    "vae_checkpointing_layers": {"vae_checkpointing": "layers"},
    "guidance_passes_2": {"guidance_passes": 2},
    "idle_parts_leave": {"idle_unet": "host", "idle_decoder": "host"},
    "rewards_idle_off": {"rewards": "idle_off"},
    "offload_optimizer": {"offload_optimizer": True},
    "accumulators_host": {"accumulators": "host"},
    "trajectory_host": {"trajectory": "host"},
}
COSTING: Mapping[str, Mapping[str, Any]] = {
    "micro_batch_4": {"micro_batch": 4, "rollout_batch": 4},
    "kept_steps_5": {"kept_steps": 5},
    "kept_steps_all": {"kept_steps": 50},
}
LATENT_ONLY = ("feed_forwards", "vae_checkpointing_blocks", "vae_checkpointing_layers", "guidance_passes_2")
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "bits_8": {"optimizer": {"bits": 8}},
    "lora": {"adapter": {"rank": 8, "convolutions": True}},
    "lora_replayed": {"adapter": {"rank": 8, "convolutions": True}, "memory": {"one_pass": False}},
}
DIRECT_ONLY = ("kept_steps_5", "kept_steps_all")
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "sd15_alignprop_t4": {"ranks": 1, "budgets": (2.6, 14.0), "resident": 4.0, "latent": True, "direct": True},
    "sdxl_draft_t4": {"ranks": 1, "budgets": (7.0, 11.5), "resident": 11.5, "latent": True, "direct": True},
    "celebahq_reinforce": {"ranks": 4, "budgets": (), "latent": False, "direct": False, "variants": VARIANTS},
}
DDPO = {"ranks": 4}


def cases() -> list[Case]:
    """All cases of the suite, recipe by recipe."""
    recipe_cases = [case for recipe, about in RECIPES.items() for case in _of(recipe, about)]
    return [
        *recipe_cases,
        _case("sd15_ddpo_t4", "chosen", DDPO, {}, gpu="t4"),
        _case("sd15_ddpo_t4", "replayed", DDPO, {"memory": {"one_pass": False}}, gpu="t4"),
    ]


def _of(recipe: str, about: Mapping[str, Any]) -> list[Case]:
    recipe_cases = [_case(recipe, "chosen", about, {}, gpu="t4")]
    recipe_cases += [_case(recipe, f"budget_{gib}", about, {}, budget_gib=gib) for gib in about["budgets"]]
    if gib := about.get("resident"):
        recipe_cases += [_case(recipe, f"resident_{gib}", about, {"memory": dict(EVERYTHING_STAYS)}, budget_gib=gib)]
    recipe_cases += [
        _case(recipe, name, about, changes, gpu="t4") for name, changes in about.get("variants", {}).items()
    ]
    recipe_cases += [_case(recipe, "knob_none", about, {"memory": dict(RESIDENT_ONE)}, gpu="t4")]
    turned = {
        name: knobs
        for name, knobs in {**SAVING, **COSTING}.items()
        if (about["latent"] or name not in LATENT_ONLY) and (about["direct"] or name not in DIRECT_ONLY)
    }
    recipe_cases += [
        _case(recipe, f"knob_{name}", about, {"memory": {**RESIDENT_ONE, **knobs}}, gpu="t4")
        for name, knobs in turned.items()
    ]
    every: dict[str, Any] = dict(RESIDENT_ONE)
    for name, knobs in turned.items():
        every |= knobs if name in SAVING else {}
    return [*recipe_cases, _case(recipe, "all", about, {"memory": every}, gpu="t4")]


def _case(
    recipe: str, name: str, about: Mapping[str, Any], changes: Mapping[str, Any], *, gpu: str | None = None,
    budget_gib: float | None = None,
) -> Case:  # fmt: skip
    settings = {
        "recipe_file": f"launch/recipes/{recipe}.yaml", "changes": dict(changes),
        "ranks": about["ranks"], "gpu": gpu, "budget_gib": budget_gib, "precision": "fp16",
    }  # fmt: skip
    return Case("plan", f"{recipe}/{name}", "plan", settings, about={"recipe": recipe, "setting": name}, threads=1)
