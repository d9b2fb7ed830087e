"""From a recipe's sections to how its model is run: the same for a run and for its plan."""

from memdiff.config import Recipe
from memdiff.memory.config import MemoryConfig
from memdiff.memory.knobs import Knobs
from memdiff.models.options import ModelOptions
from memdiff.models.precision import DTYPES


def model_options(recipe: Recipe, memory: MemoryConfig | Knobs, *, precision: str) -> ModelOptions:
    """`memory` is the recipe's section or a plan's choice; `precision` is resolved."""
    checkpointing, vae = memory.activation_checkpointing, memory.vae_checkpointing
    return ModelOptions(
        dtype=DTYPES[precision],
        adapter=recipe.adapter,
        trained_modules=recipe.trained_modules,
        activation_checkpointing="none" if checkpointing == "auto" else checkpointing,
        guidance_passes=1 if memory.guidance_passes == "auto" else memory.guidance_passes,
        vae_checkpointing="layers" if vae == "auto" else vae,
        keep_base=recipe.method.needs_base,
    )
