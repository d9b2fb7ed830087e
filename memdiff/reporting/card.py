"""The card of a saved model: README.md with the metadata that the hub reads, and its curves. No torch.

Nothing in it is of the machine: local folders are named by their last part.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import memdiff
from memdiff.models.config import ModelConfig, base_of, on_the_hub, ships, takes_prompts
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.folder import Row, column, known
from memdiff.reporting.loading import diffusers_code, memdiff_command
from memdiff.reporting.words import reward_words
from memdiff.rewards.config import part_name

CARD, CURVES = "README.md", "curves.png"
HERE = Path(__file__).parent
VERSIONS = ("memdiff", "commit", "python", "torch", "deepspeed", "diffusers", "transformers", "peft", "device")


def write_card(
    folder: Path, recipe: Recipe, rows: list[Row], environment: Mapping[str, Any], *, trained_round: int
) -> None:
    """README.md and curves.png into the folder of a saved model. Raises OSError.

    `rows` are those of metrics.jsonl, `environment` is status.json's, `trained_round` the round that the weights are
    of.
    """
    from memdiff.reporting.curves import write_curves

    has_curves = write_curves(rows, folder / CURVES)
    text = card(recipe, rows, environment, trained_round=trained_round, has_curves=has_curves)
    (folder / CARD).write_text(text, encoding="utf-8")


def card(
    recipe: Recipe, rows: list[Row], environment: Mapping[str, Any], *, trained_round: int, has_curves: bool
) -> str:
    """The text of README.md."""
    template = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    ).get_template("card.md.j2")  # fmt: skip
    text = yaml.safe_dump(portable(recipe), sort_keys=False, allow_unicode=True).rstrip()
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    return template.render(
        metadata=yaml.safe_dump(metadata(recipe), sort_keys=False),
        title=inline(title(recipe)),
        what=inline(what(recipe)),
        version=memdiff.__version__,
        facts=[(name, inline(value)) for name, value in facts(recipe, rows, trained_round)],
        curves=CURVES if has_curves else "",
        curves_alt="The reward over the rounds",
        diffusers=diffusers_code(recipe),
        memdiff=memdiff_command(recipe),
        sampler=sampler_words(recipe),
        limit=limit(recipe),
        round_words=f"round {trained_round} of {recipe.run.rounds}",
        held_out=held_out_words(recipe),
        fence="`" * max(3, longest + 1),
        recipe=text,
        versions=", ".join(f"{name} {inline(str(environment[name]))}" for name in VERSIONS if environment.get(name)),
    )


def metadata(recipe: Recipe) -> dict[str, Any]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    text = takes_prompts(recipe.model)
    tags = ["memdiff", "diffusers", "reward-fine-tuning", recipe.method.kind]
    about: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image" if text else "unconditional-image-generation",
        "tags": [*tags, "lora"] if recipe.adapter is not None else tags,
    }
    if on_the_hub(recipe.model):
        about["base_model"] = base_of(recipe.model)
        about["base_model_relation"] = "adapter" if recipe.adapter is not None else "finetune"
    return about


def title(recipe: Recipe) -> str:
    """A model and what it was rewarded for, in a line."""
    return f"{base_of(recipe.model)}, fine-tuned for {rewards_of(recipe)}"


def rewards_of(recipe: Recipe) -> str:
    """The parts of the reward by their kinds and names, the first few of many."""
    if not recipe.reward:
        return "fewer steps"
    return reward_words((part.kind, part_name(part)) for part in recipe.reward)


def what(recipe: Recipe) -> str:
    """What was trained, and how."""
    if recipe.adapter is not None:
        trained = "A LoRA" + (f" of rank {recipe.adapter.rank}" if recipe.adapter.path is None else "")
    elif recipe.trained_modules is not None:
        trained = f"The UNet's {', '.join(recipe.trained_modules)}"
    else:
        trained = "The whole UNet"
    return f"{trained} of {base_words(recipe.model)}, trained by {recipe.method.kind} on {rewards_of(recipe)}."


def base_words(model: ModelConfig) -> str:
    """The base model, and where it is to be had."""
    if ships(model):
        return f"`{base_of(model)}`, which ships with memdiff"
    return f"`{base_of(model)}`" + ("" if on_the_hub(model) else ", a local folder")


def facts(recipe: Recipe, rows: list[Row], trained_round: int) -> list[tuple[str, str]]:
    """What was reached: only what was measured."""
    table = []
    training = [row for row in rows if row.get("round", 0) >= 1]
    for name, measured, key in (
        ("reward, images of a round", training, "reward_mean"),
        ("reward, fixed noise", rows, "evaluate/reward_mean"),
    ):
        values = known(column(measured, key))
        if len(values) >= 2:
            table.append((name, f"{values[0]:.4g} at first, {values[-1]:.4g} at last"))
    images = known(column([row for row in rows if row.get("round", 0) <= trained_round], "images"))
    if images:
        table.append(("images seen", f"{images[-1]:,.0f}"))
    table.append(("rounds", f"{trained_round} of {recipe.run.rounds}, {recipe.run.images_per_round} images each"))
    table.append(("seed", str(recipe.run.seed)))
    return table


def sampler_words(recipe: Recipe) -> str:
    """The chain in which the rewards were earned."""
    sampler = recipe.sampler
    words = f"DDIM, {sampler.steps} steps, eta {sampler.eta:g}"
    if sampler.guidance is not None:
        words += f", guidance {sampler.guidance:g}"
    if sampler.negative_prompt:
        words += f", negative prompt {inline(sampler.negative_prompt)!r}"
    if sampler.sub_schedule is not None:
        return words + f", on a {sampler.sub_schedule} shortcut of the timesteps."
    spacing = sampler.timestep_spacing or "the pipeline's own"
    return words + f", timestep spacing: {spacing}."


def limit(recipe: Recipe) -> str:
    """What a reward does to a model."""
    if not recipe.method.takes_reward:
        return "It was trained towards a set of real images in fewer steps; whatever is rare in them may be gone."
    return (
        "It was trained to score well with the rewards above. A reward that rises says nothing about what the reward "
        "does not see: images may have become alike, or please the reward and nobody else."
    )


def held_out_words(recipe: Recipe) -> str:
    """What was looked at beside the reward."""
    names = [part_name(part) for part in recipe.evaluate.rewards]
    return (
        f"Watched and not trained on: {inline(', '.join(names))}." if names else "No reward was held out to check it."
    )


def portable(recipe: Recipe) -> Any:
    """What a person would have written, without a folder of this machine."""
    return _without_places(recipe.model_dump(mode="json", exclude_defaults=True))


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith("/") else value


def inline(text: str) -> str:
    """A text that stays one line and one cell of a table: nothing in it makes HTML or a new block."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("[", "\\[")
