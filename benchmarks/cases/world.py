"""Suite `world`: the same round of 32 images on 1, 2 and 4 ranks. One thread a rank; gloo on CPUs."""

from benchmarks.case import Case, overlaid
from benchmarks.cases.recipes import DIGITS, DIGITS_TEXT

RANKS = (1, 2, 4)


def cases() -> list[Case]:
    """By method, then ranks."""
    recipes = {"reinforce": DIGITS, "draft": DIGITS_TEXT}
    return [
        Case(
            "world",
            f"{method}/{ranks}",
            "training",
            {
                "recipe": overlaid(recipe, {"run": {"images_per_round": 32}, "memory": {"micro_batch": 8}}),
                "updates": 3,
                "warmup": 1,
            },
            about={"method": method},
            ranks=ranks,
            threads=1,
        )
        for method, recipe in recipes.items()
        for ranks in RANKS
    ]
