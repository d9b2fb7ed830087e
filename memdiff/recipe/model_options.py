"""From a recipe and its knobs to how its model is run: the same for a run and for its plan."""

from memdiff.memory.knobs import Knobs
from memdiff.models.options import ModelOptions
from memdiff.models.precision import DTYPES
from memdiff.recipe.recipe import Recipe


def model_options(recipe: Recipe, knobs: Knobs, *, precision: str) -> ModelOptions:
    """How the recipe's model is loaded with these knobs; `precision` is fp16, bf16 or fp32, not auto."""
    return ModelOptions(
        dtype=DTYPES[precision],
        adapter=recipe.adapter,
        trained_modules=recipe.trained_modules,
        activation_checkpointing=knobs.activation_checkpointing,
        guidance_passes=knobs.guidance_passes,
        vae_checkpointing=knobs.vae_checkpointing,
        channels_last=recipe.model.channels_last,
        keep_base=recipe.method.needs_base,
    )
