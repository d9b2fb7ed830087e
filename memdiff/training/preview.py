"""`memdiff train --dry-run`: what a run would do, with everything checked that can be without starting it. No torch."""

from pathlib import Path

from memdiff.recipe.contents import contents_of
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.config import part_name
from memdiff.runtime.from_here import from_here
from memdiff.runtime.units import counted
from memdiff.training.run_folder import Resume, RunFolder


def preview(recipe: Recipe, folder: RunFolder, world_size: int, resume: Resume, ds_config: Path | None) -> list[str]:
    """A line each for what is trained, on what, and where. Writes nothing.

    Raises ConfigError and CheckpointError as starting the run would.
    """
    import torch

    run, model = recipe.run, recipe.model
    name = model.name if model.kind == "embedded" else model.path
    rewards = ", ".join(part_name(part) for part in recipe.reward)
    trained = _trained(recipe)
    on_gpu = torch.cuda.is_available()
    devices = f"{world_size} x {torch.cuda.get_device_name()}" if on_gpu else counted(world_size, "CPU rank")
    return [
        f"model:   {name} ({model.kind}), trained: {trained}",
        f"method:  {recipe.method.kind} over {recipe.sampler.steps} steps, reward: {rewards}",
        f"rounds:  {run.rounds} of {run.images_per_round} images, on {devices}",
        f"folder:  {from_here(str(folder.path))}, {_what_is_there(recipe, folder, resume, ds_config)}",
    ]


def _what_is_there(recipe: Recipe, folder: RunFolder, resume: Resume, ds_config: Path | None) -> str:
    """What starting would do with the folder."""
    if not folder.exists():
        return "a new run"
    if resume == "never":
        return "whose run would be moved aside"
    folder.check_same(recipe, contents_of(recipe, ds_config))
    done = folder.status().get("round", 0)
    if not done:
        return "where a run began that has no round done: it starts again"
    return f"where the run goes on after round {done} of {recipe.run.rounds}"


def _trained(recipe: Recipe) -> str:
    if recipe.adapter is None:
        return "the UNet's own weights"
    return f"the LoRA in {recipe.adapter.path}" if recipe.adapter.path else f"LoRA of rank {recipe.adapter.rank}"
