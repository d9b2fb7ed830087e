"""The rows as data: what is measured, how long it is expected to take, what it needs of the card. No torch.

Most telling first. `estimate_s` are seconds on an H200, from the bare calls reported in results/gpu_reported.jsonl (SD
1.5, 4 guided images, 20 forwards and 20 pulls: 3.9 s) and the rows' own share of them; a slower card takes longer, and
fewer rows fit. A memory row's process is capped at its plan's peak, at most the T4's 14.56 GiB.

A dry run takes the embedded models in the place of the large ones, on a CPU in fp32: the same code, other numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.case import Case, overlaid
from benchmarks.cases.plan import RESIDENT_ONE

Kind = Literal["timing", "peers", "memory"]
T4_GIB = 14.56  # as current drivers report it
IMPORT_S = 20.0  # of a process, beside others
PIPELINE = ".cache/peers-pipeline-sd15"

SD15, DDPO, SDXL, CELEBAHQ = "sd15_alignprop_t4", "sd15_ddpo_t4", "sdxl_draft_t4", "celebahq_reinforce"
SMALL = {
    SD15: "digits_text_alignprop", DDPO: "digits_text_ddpo", SDXL: "digits_text_draft", CELEBAHQ: "digits_ddpo",
}  # fmt: skip
DRY_STEPS, DRY_MICRO_BATCH, DRY_S = 3, 2, 6.0


@dataclass(frozen=True)
class GpuRow:
    """One row of the suite. `gib`: of the card, of a memory row; `against`: whose seconds a timing row is held to."""

    name: str
    kind: Kind
    recipe: str
    settings: Mapping[str, Any]
    estimate_s: float
    gib: float = 0.0
    against: str = ""

    def case(self) -> Case:
        """As the suites have it."""
        match self.kind:
            case "timing":
                measure, environment = "timing", "memdiff"
            case "memory":
                measure, environment = "untrained", "memdiff"
            case "peers":
                measure, environment = self.settings["trl"], "peers"
        about = {"recipe": self.recipe, "kind": self.kind, "against": self.against}
        return Case("gpu", self.name, measure, dict(self.settings), about, environment)


LEAN: Mapping[str, Any] = {**RESIDENT_ONE, "vae_checkpointing": "layers", "micro_batch": 4, "rollout_batch": 4}
ALIGNPROP: Mapping[str, Any] = {
    "method": {"truncation": "fixed"}, "sampler": {"steps": 20, "eta": 1.0},
    "run": {"images_per_round": 4}, "memory": LEAN,
}  # fmt: skip
CHANNELS_LAST = overlaid(ALIGNPROP, {"model": {"channels_last": True}})
ONE_PASS: Mapping[str, Any] = {
    "method": {"inner_updates": 1, "per_prompt": False}, "sampler": {"steps": 20, "eta": 1.0},
    "run": {"images_per_round": 4}, "memory": {**LEAN, "one_pass": True},
}  # fmt: skip
FULL: Mapping[str, Any] = {
    "sampler": {"steps": 10}, "run": {"images_per_round": 14},
    "memory": {**RESIDENT_ONE, "micro_batch": 14, "rollout_batch": 14},
}  # fmt: skip
XL: Mapping[str, Any] = {
    "method": {"last_steps": "all"}, "sampler": {"steps": 6, "eta": 1.0}, "run": {"images_per_round": 1},
    "memory": {**LEAN, "micro_batch": 1, "rollout_batch": 1},
}  # fmt: skip


def rows(*, dry: bool = False) -> list[GpuRow]:
    """In the order in which they are measured."""
    every = [
        *_timed("sd15 alignprop, recomputed", SD15, ALIGNPROP, update_s=4.5, build_s=8, bare=True),
        *_timed("sd15 reinforce, one pass", DDPO, ONE_PASS, update_s=3.5, build_s=8, bare=True),
        *_timed("celebahq reinforce, 14 images a piece", CELEBAHQ, FULL, update_s=4.0, build_s=4),
        *_timed("sdxl draft", SDXL, XL, update_s=4.5, build_s=15),
        *_timed("sd15 alignprop, channels last", SD15, CHANNELS_LAST, update_s=4.0, build_s=8),
        *_timed("sd15 alignprop as on a T4", SD15, ALIGNPROP, update_s=6.0, build_s=6, t4=True, floor=False),
        _trl("sd15 alignprop, recomputed", SD15, "trl_alignprop"),
        _trl("sd15 reinforce, one pass", DDPO, "trl_ddpo"),
        *_memory(),
    ]
    return [small(row) for row in every] if dry else every


def _timed(
    name: str,
    recipe: str,
    changes: Mapping[str, Any],
    *,
    update_s: float,
    build_s: float,
    bare: bool = False,
    t4: bool = False,
    floor: bool = True,
) -> list[GpuRow]:
    """memdiff's row, then the floor's and the bare loop's. Three updates each, and one more under the profiler."""
    base = {
        "recipe_file": f"launch/recipes/{recipe}.yaml",
        "changes": overlaid({"evaluate": {"every": 0}, "model": {"precision": "fp16"}}, changes),
        "updates": 2, "warmup": 1, "t4": t4,
    }  # fmt: skip

    def row(who: str, updates: float) -> GpuRow:
        return GpuRow(f"{name}: {who}", "timing", recipe, {**base, "who": who}, build_s + updates * update_s, 0.0, name)

    rows_of_name = [row("memdiff", 5)]
    rows_of_name += [row("floor", 3)] if floor else []
    return [*rows_of_name, row("bare", 4)] if bare else rows_of_name


def _trl(name: str, recipe: str, measure: str) -> GpuRow:
    settings = {
        "trl": measure, "pipeline": PIPELINE, "steps": 20, "guidance": 7.5, "batch": 4, "updates": 2, "warmup": 1,
        "mixed_precision": "fp16", "ledger": False,
    }  # fmt: skip
    return GpuRow(f"{name}: TRL", "peers", recipe, settings, 30.0, 0.0, name)


def _memory() -> list[GpuRow]:
    """The runs of results/gpu_reported.jsonl once more, each by the planner's choice, capped at its plan.

    "One of four T4s" has what each of four has left for a plan; its optimizer holds all states, not a quarter of them.
    """
    sd15 = {"sampler": {"steps": 20}, "run": {"images_per_round": 4}}
    sdxl = {"sampler": {"steps": 4}, "run": {"images_per_round": 1}}
    kept = {"memory": {"kept_steps": 5, "activation_checkpointing": "none"}}
    celebahq = {"sampler": {"steps": 10}, "run": {"images_per_round": 16}}
    stays = {"memory": {"idle_unet": "gpu", "idle_decoder": "gpu", "rewards": "gpu"}}
    leaves = {"memory": {"idle_unet": "host", "idle_decoder": "host", "rewards": "idle_off", "kept_steps": 0}}
    last = {"model": {"channels_last": True}}
    steps_alone = {"memory": {"kept_steps": 0, "activation_checkpointing": "none"}}
    # Under a hard cap the process has exactly the GiB of the name, whether the plan with its allowance fits or not.
    every: list[tuple[str, str, Mapping[str, Any], float | None, bool]] = [
        ("sdxl, idle parts off, hard cap 7.0", SDXL, overlaid(sdxl, leaves), 7.0, True),
        ("sdxl, idle parts off, room to spare", SDXL, overlaid(sdxl, leaves), T4_GIB, True),
        ("sd15, idle parts off, hard cap 2.6", SD15, overlaid(sd15, leaves), 2.6, True),
        ("sd15, idle parts off, room to spare", SD15, overlaid(sd15, leaves), T4_GIB, True),
        ("sdxl, one of four T4s", SDXL, sdxl, None, False),
        ("sd15, one of four T4s", SD15, sd15, None, False),
        ("sd15, budget 4.0, everything stays", SD15, overlaid(sd15, stays), 4.0, False),
        ("sd15, 5 steps kept", SD15, overlaid(sd15, kept), None, False),
        ("sdxl, steps alone run again, hard cap 14.56", SDXL, overlaid(sdxl, steps_alone), T4_GIB, True),
        ("celebahq, one of four T4s", CELEBAHQ, celebahq, None, False),
        ("sd15, one of four T4s, channels last", SD15, overlaid(sd15, last), None, False),
    ]  # fmt: skip
    rows_of_memory = []
    for name, recipe, changes, budget_gib, hard in every:
        settings = {
            "recipe_file": f"launch/recipes/{recipe}.yaml",
            "changes": overlaid({"evaluate": {"every": 0}, "model": {"precision": "fp16"}}, changes),
            "planned": True, "budget_gib": budget_gib, "hard_cap": hard, "gpus": 4, "cap_gib": T4_GIB, "largest": False,
            "updates": 1, "warmup": 0, "ledger": False,
        }  # fmt: skip
        seconds = 60.0 if recipe == SDXL else 40.0
        rows_of_memory.append(
            GpuRow(f"memory: {name}", "memory", recipe, settings, seconds, (budget_gib or T4_GIB) + 0.5)
        )
    return rows_of_memory


def small(row: GpuRow) -> GpuRow:
    """The same of an embedded model on a CPU."""
    recipe = SMALL[row.recipe]
    if row.kind == "peers":
        return replace(row, settings={**row.settings, "pipeline": ".cache/peers-pipeline", "mixed_precision": "no"})
    changes = overlaid(
        row.settings["changes"],
        {"model": {"precision": "fp32"}, "sampler": {"steps": DRY_STEPS}, "run": {"images_per_round": DRY_MICRO_BATCH}},
    )
    memory = dict(changes.get("memory", {}))
    if "micro_batch" in memory:
        memory |= {"micro_batch": DRY_MICRO_BATCH, "rollout_batch": DRY_MICRO_BATCH}
    if memory.get("kept_steps"):
        memory["kept_steps"] = 1
    changes["memory"] = memory
    changes["optimizer"] = {"bits": 32}
    if row.recipe == CELEBAHQ:
        changes["method"] = {"inner_updates": 1, "kl_weight": 0.0}
    settings = {
        **row.settings, "recipe_file": f"launch/recipes/{recipe}.yaml", "changes": changes, "ledger": True,
        "updates": 1,
    }  # fmt: skip
    return replace(row, settings=settings, estimate_s=DRY_S)
