"""How a saved model is loaded again: the lines that stand on its card. No torch."""

from memdiff.models.config import ModelConfig, base_of, on_the_hub, ships, takes_prompts
from memdiff.recipe.recipe import Recipe

PLACE = "path/to/this/folder"  # on the card of a folder; once pushed, the repository's name


def is_pipeline(recipe: Recipe) -> bool:
    """Whether model/ is a pipeline of its own; else it is an adapter's file."""
    return recipe.adapter is None or (not takes_prompts(recipe.model) and recipe.adapter.steps is None)


def diffusers_code(recipe: Recipe) -> str:
    """Python that loads and samples it; empty where diffusers can't."""
    sampler, model, adapter = recipe.sampler, recipe.model, recipe.adapter
    if (adapter is not None and adapter.steps is not None) or sampler.sub_schedule is not None:
        return ""
    call = f"num_inference_steps={sampler.steps}, eta={sampler.eta:g}"
    if not takes_prompts(model):
        return (
            "from diffusers import DDIMPipeline\n\n"
            f'pipeline = DDIMPipeline.from_pretrained("{PLACE}")\n'
            f"image = pipeline({call}).images[0]"
        )
    name = "StableDiffusionXLPipeline" if model.kind == "sdxl" else "StableDiffusionPipeline"
    spacing = "" if sampler.timestep_spacing is None else f', timestep_spacing="{sampler.timestep_spacing}"'
    lines = [
        f"from diffusers import DDIMScheduler, {name}\n",
        f'pipeline = {name}.from_pretrained("{PLACE if adapter is None else _base_place(model)}")',
        'config = {"clip_sample": False, **pipeline.scheduler.config}',
        f"pipeline.scheduler = DDIMScheduler.from_config(config{spacing})",
    ]
    if adapter is not None:
        lines.append(f'pipeline.load_lora_weights("{PLACE}")')
    guidance = "" if sampler.guidance is None else f", guidance_scale={sampler.guidance:g}"
    lines.append(f'image = pipeline("a prompt", {call}{guidance}).images[0]')
    return "\n".join(lines)


def _base_place(model: ModelConfig) -> str:
    """Where diffusers finds the base of an adapter."""
    if ships(model):
        return f"memdiff/digits/{base_of(model)}"
    return base_of(model) if on_the_hub(model) else f"path/to/{base_of(model)}"


def memdiff_command(recipe: Recipe) -> str:
    """A command that samples it as it was trained."""
    sampler = recipe.sampler
    words = f"--num-images 16 --steps {sampler.steps} --eta {sampler.eta:g}"
    if takes_prompts(recipe.model):
        words += ' --prompt "a prompt"'
        words += "" if sampler.guidance is None else f" --guidance {sampler.guidance:g}"
    if is_pipeline(recipe):
        return f"memdiff sample {PLACE} {words}"
    return f"memdiff sample {base_of(recipe.model)} --mix {PLACE}=1 {words}"
