"""What a recipe's round comes to on one rank, and at which sizes it is measured."""

from memdiff.config import Recipe
from memdiff.objectives.config import ReinforceConfig
from memdiff.plan.compose import Job


def job_of(recipe: Recipe, *, ranks: int, precision: str) -> Job:
    """Of the rank with the most images. Raises ConfigError where a rank would have none."""
    recipe.check_world_size(ranks)
    half = precision != "fp32"
    return Job(
        method=recipe.method,
        images=-(-recipe.run.images_per_round // ranks),
        steps=recipe.sampler.steps,
        weighted_steps=_weighted_steps(recipe),
        state_bytes=2 if half and isinstance(recipe.method, ReinforceConfig) else 4,
        chunk=max(part.chunk for part in recipe.reward),
        evaluated=-(-recipe.evaluate.images // ranks) if recipe.evaluate.every else 0,
    )


def _weighted_steps(recipe: Recipe) -> int:
    sampler = recipe.sampler
    if sampler.eta == 0 and sampler.sigma_floor == 0:
        return 0
    # DDIM with eta above 0 adds noise in every step but the last, which needs a floor for it.
    noisy = max(1, sampler.steps if sampler.sigma_floor > 0 else sampler.steps - 1)
    given = recipe.method.step_weights if isinstance(recipe.method, ReinforceConfig) else "uniform"
    return noisy if isinstance(given, str) else sum(weight > 0 for weight in given[:noisy])


def sizes_to_measure(recipe: Recipe, job: Job) -> tuple[int, ...]:
    """Images of the short rounds. Several where a piece's bytes are not proportional to its rows.

    Full fine-tuning makes a gradient as large as the weights, whatever the rows: its peak bends, and is measured at
    three sizes. REINFORCE scores all images at once. One row by itself is left out where more can be had: some of its
    transposes need no copy, so that it takes less.
    """
    rows_each = 2 if recipe.sampler.guidance not in (None, 1.0) else 1
    if job.images == 1 or (job.direct and recipe.adapter is not None and rows_each > 1):
        return (1,)
    least = 2 // rows_each
    return (least, 8) if recipe.adapter is not None else (least, 8, 16)
