"""Suite `chain`: what a longer differentiated chain costs. The embedded text-to-image model, 50 steps, LoRA.

recomputed   DRaFT-K: the last K steps of 50, one step's graph at a time
kept         the same, every graph kept from the rollout: what plain autograd holds
length       chains of K steps, all of them differentiated, recomputed
"""

from benchmarks.case import Case, overlaid
from benchmarks.cases.recipes import DIGITS_TEXT

STEPS = 50
DEPTHS = (1, 2, 5, 10, 20, 35, 50)


def cases() -> list[Case]:
    """By series, then K."""
    return [_case(series, depth) for series in ("recomputed", "kept", "length") for depth in DEPTHS]


def _case(series: str, depth: int) -> Case:
    recipe = overlaid(
        DIGITS_TEXT,
        {
            "sampler": {"steps": depth if series == "length" else STEPS},
            "method": {"last_steps": depth},
            "memory": {
                "micro_batch": 4, "rollout_batch": 4, "decode_batch": 1, "vae_checkpointing": "layers",
                "kept_steps": depth if series == "kept" else 0,
            },
            "run": {"images_per_round": 4},
        },
    )  # fmt: skip
    settings = {"recipe": recipe, "updates": 2, "warmup": 1}
    return Case("chain", f"{series}/{depth}", "training", settings, about={"series": series, "depth": depth})
