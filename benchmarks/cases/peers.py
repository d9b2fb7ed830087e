"""Suite `peers`: one update of TRL, of bare loops and of memdiff on the same pipeline, prompts, steps and batch.

4.4 M parameters, latents 4 x 16 x 16, images of 64 x 64, guidance 5, LoRA r=4 alpha 4, fp32, batch 4, 10 and 20 steps.
AlignProp differentiates every step. A floor is the UNet calls alone, as many as the rows above it make.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.case import Case, Environment, Measure
from benchmarks.cases.recipes import RESIDENT

PIPELINE = ".cache/peers-pipeline"
STEPS = (10, 20)
BATCH = 4
GUIDANCE = 5.0
TIMED = {"updates": 3, "warmup": 1}

# memdiff's knobs. The verdict takes the best of them.
ALIGNPROP_KNOBS: Mapping[str, Mapping[str, Any]] = {
    "recomputed, micro-batch 2": {"micro_batch": 2, "decode_batch": 1, "vae_checkpointing": "layers"},
    "recomputed, feed-forwards again, micro-batch 4": {
        "micro_batch": 4, "decode_batch": 1, "vae_checkpointing": "layers", "activation_checkpointing": "feed_forwards",
    },
    "recomputed, micro-batch 4": {"micro_batch": 4, "decode_batch": 1, "vae_checkpointing": "layers"},
    "kept, micro-batch 4": {"micro_batch": 4, "kept_steps": "all"},
    "kept, micro-batch 1": {"micro_batch": 1, "kept_steps": "all", "decode_batch": 1},
}  # fmt: skip
REINFORCE_KNOBS: Mapping[str, Mapping[str, Any]] = {
    "one pass, micro-batch 2": {"micro_batch": 2, "one_pass": True},
    "one pass, feed-forwards again, micro-batch 4": {
        "micro_batch": 4, "one_pass": True, "activation_checkpointing": "feed_forwards",
    },
    "one pass, micro-batch 4": {"micro_batch": 4, "one_pass": True},
    "replayed, micro-batch 2": {"micro_batch": 2, "rollout_batch": 4},
    "replayed, micro-batch 4": {"micro_batch": 4, "rollout_batch": 4},
}  # fmt: skip


def cases() -> list[Case]:
    """By steps, then method."""
    return [case for steps in STEPS for case in (*_alignprop(steps), *_ddpo(steps))]


def _alignprop(steps: int) -> list[Case]:
    method = {"kind": "alignprop", "truncation": "fixed"}
    method_cases = [_trl("alignprop", "trl_alignprop", steps)]
    method_cases += [_memdiff("alignprop", name, method, knobs, steps) for name, knobs in ALIGNPROP_KNOBS.items()]
    method_cases += [
        _bare("alignprop", "bare loop, step checkpointed", steps, {"loop": "alignprop_checkpointed"}),
        _bare("alignprop", "bare loop, everything kept", steps, {"loop": "alignprop"}),
    ]
    again = {"loop": "floor", "forwards": steps, "to_x": True}
    once = {"loop": "floor", "forwards": 0, "to_x": True}
    method_cases += [_bare("alignprop", f"floor, recomputed, {env}", steps, again, env) for env in _BOTH]
    return method_cases + [_bare("alignprop", f"floor, kept, {env}", steps, once, env) for env in _BOTH]


def _ddpo(steps: int) -> list[Case]:
    method = {"kind": "reinforce", "advantage": "whiten", "advantage_clip": 5.0}
    method_cases = [_trl("ddpo", "trl_ddpo", steps)]
    method_cases += [_memdiff("ddpo", name, method, knobs, steps) for name, knobs in REINFORCE_KNOBS.items()]
    method_cases += [_bare("ddpo", "bare loop", steps, {"loop": "ddpo"})]
    calls = {"loop": "floor", "forwards": steps, "to_x": False}
    once = {"loop": "floor", "forwards": 0, "to_x": False}
    method_cases += [_bare("ddpo", f"floor, {env}", steps, calls, env) for env in _BOTH]
    return [*method_cases, _bare("ddpo", "floor, one pass, memdiff", steps, once, "memdiff")]


_BOTH: tuple[Environment, Environment] = ("peers", "memdiff")


def _trl(method: str, measure: Measure, steps: int) -> Case:
    settings = {"pipeline": PIPELINE, "steps": steps, "guidance": GUIDANCE, "batch": BATCH, **TIMED}
    return Case("peers", f"{method}/{steps}/TRL 0.23.1", measure, settings, _about(method, steps, "trl"), "peers")


def _bare(method: str, name: str, steps: int, loop: Mapping[str, Any], environment: Environment = "peers") -> Case:
    settings = {"pipeline": PIPELINE, "steps": steps, "guidance": GUIDANCE, "batch": BATCH, **TIMED, **loop}
    side = "floor" if loop["loop"] == "floor" else "bare"
    return Case("peers", f"{method}/{steps}/{name}", "bare", settings, _about(method, steps, side), environment)


def _memdiff(method: str, name: str, config: Mapping[str, Any], knobs: Mapping[str, Any], steps: int) -> Case:
    memory = {**RESIDENT, "rollout_batch": BATCH, "decode_batch": BATCH, **knobs}
    if memory["kept_steps"] == "all":
        memory["kept_steps"] = steps
    recipe = {
        "model": {"kind": "stable_diffusion", "path": PIPELINE, "precision": "fp32"},
        "adapter": {"rank": 4, "alpha": 4},
        "sampler": {"steps": steps, "eta": 1.0, "guidance": GUIDANCE},
        "prompts": ["a cat", "a dog", "a red fox", "two owls"],
        "method": config,
        "reward": [{"kind": "python", "file": "benchmarks/peers/brightness.py", "differentiable": True}],
        "optimizer": {"learning_rate": 1e-5},
        "memory": memory,
        "evaluate": {"every": 0},
        "run": {"rounds": 1, "images_per_round": BATCH},
    }
    settings = {"recipe": recipe, **TIMED}
    return Case("peers", f"{method}/{steps}/memdiff, {name}", "training", settings, _about(method, steps, "memdiff"))


def _about(method: str, steps: int, side: str) -> dict[str, Any]:
    return {"method": method, "steps": steps, "side": side}
