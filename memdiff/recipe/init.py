"""`memdiff init`: a recipe with comments from a few words: which model, which reward, on which card. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from memdiff.errors import ConfigError
from memdiff.models.config import EMBEDDED
from memdiff.models.folder import PIPELINE_KINDS
from memdiff.models.single_file_kinds import SUFFIXES, kind_of_file, shapes_of
from memdiff.recipe.reading import check_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.recipe.shipped import EDITORS
from memdiff.rewards.config import AnyPart, way_to_a_gradient
from memdiff.rewards.part_config import TextPart
from memdiff.runtime.from_here import shell_word
from memdiff.runtime.small_files import read_small_file

MOST_INDEX_BYTES = 2**20

# Of hub ids, which can't be looked into before they are downloaded; the first that stands in the id decides.
NAMES = {"ddpm": "ddpm", "xl": "sdxl", "stable-diffusion": "stable_diffusion", "sd-": "stable_diffusion"}
SMALL = "digits"  # trained whole
STEPS, STEPS_OF_DIGITS = 50, 25
SCHEMA_LINE = f"{EDITORS} $schema=./recipe.schema.json      (memdiff schema > recipe.schema.json)"


@dataclass(frozen=True)
class Wish:
    """What was asked for. `rewards` are parts as a recipe has them."""

    model: str
    rewards: Sequence[Mapping[str, Any]]
    prompts: Sequence[str] = ()
    kind: str | None = None
    method: str | None = None
    rounds: int = 20


def kind_of(model: str, kind: str | None = None) -> str:
    """The `model.kind` of an embedded model's name, a pipeline folder or file, or a hub id. Raises ConfigError."""
    if kind is not None:
        return kind
    if model in EMBEDDED:
        return "embedded"
    if Path(model).is_file() and Path(model).suffix in SUFFIXES:
        shapes = shapes_of(Path(model))
        if shapes is None:
            raise ConfigError(f"--model {model}: say what it is, --kind stable_diffusion or sdxl")
        return kind_of_file(Path(model), shapes)
    index = Path(model) / "model_index.json"
    if index.is_file():
        try:
            values = json.loads(read_small_file(index, what="--model", most_bytes=MOST_INDEX_BYTES))
        except (ValueError, RecursionError):
            raise ConfigError(f"--model {index} is not a JSON file; fetch it again") from None
        name = values.get("_class_name") if isinstance(values, dict) else None
        if isinstance(name, str) and name in PIPELINE_KINDS:
            return PIPELINE_KINDS[name]
        raise ConfigError(f"{index} names a {name}; memdiff trains {', '.join(PIPELINE_KINDS)}")
    named = next((kind for part, kind in NAMES.items() if part in model.lower()), None)
    if named is None:
        raise ConfigError(f"--model {model}: say what it is, --kind ddpm, stable_diffusion or sdxl")
    return named


def write_recipe(wish: Wish, parts: Sequence[AnyPart], file: Path) -> Recipe:
    """Writes the recipe and returns it, checked. Raises ConfigError, also where the file is there already."""
    if file.exists():
        raise ConfigError(f"{file} exists; give another --out")
    kind = kind_of(wish.model, wish.kind)
    takes_prompts = kind in ("stable_diffusion", "sdxl") or wish.model == "digits_text"
    if takes_prompts and not wish.prompts:
        raise ConfigError(f"{wish.model} makes images from texts: give --prompt, again for more")
    if not takes_prompts and any(isinstance(part, TextPart) and part.prompt is None for part in parts):
        raise ConfigError("a reward that compares images with text needs its own: --reward KIND:prompt=...")
    method = wish.method or ("reinforce" if any(way_to_a_gradient(part) is not None for part in parts) else "draft")
    folder = file.resolve().parent
    text = _text(wish, kind, method, folder, takes_prompts=takes_prompts)
    recipe = check_recipe(yaml.safe_load(text), source=str(file), folder=folder)
    try:
        with file.open("x") as new:  # a link that leads nowhere is not written through
            new.write(text)
    except OSError as error:
        raise ConfigError(f"--out {file} can't be written: {error.strerror}") from None
    return recipe


def next_commands(file: Path, model: str, gpu: str | None, gpus: int) -> list[str]:
    """What to type next, a line each. The models that ship train on a CPU: they are planned only for a card by name."""
    plan = f"memdiff plan {shell_word(file)} --gpu {gpu or 't4'} --gpus {gpus}"
    commands = {} if model in EMBEDDED and gpu is None else {plan: "what fits the card, and why"}
    commands |= {
        f"memdiff train {shell_word(file)} --dry-run": "what would run here",
        f"memdiff train {shell_word(file)}": "run it",
    }
    width = max(map(len, commands))
    return [f"  {command:<{width}}   {words}" for command, words in commands.items()]


def _as_seen_from(folder: Path, part: Mapping[str, Any]) -> dict[str, Any]:
    """The part with files below the recipe's folder by their names there, so that both can be moved."""
    return {
        key: str(Path(value).relative_to(folder))
        if isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(folder)
        else value
        for key, value in part.items()
    }


def _text(wish: Wish, kind: str, method: str, folder: Path, *, takes_prompts: bool) -> str:
    """Sections in the order in which a reader asks, each with the reason for its value."""
    model = {"kind": kind, ("name" if kind == "embedded" else "path"): wish.model}
    gradient = method != "reinforce"
    steps = STEPS_OF_DIGITS if kind == "embedded" else STEPS
    eta, guidance = (0.0 if gradient else 1.0), (7.5 if kind in ("stable_diffusion", "sdxl") else 1.0)
    images = 8 if gradient else 64
    lines = [
        SCHEMA_LINE,
        "# Every key: memdiff schema. Any key from the command line: --set run.rounds=5",
        f"model: {_flow(model)}",
    ]
    whole = wish.model == SMALL and not gradient
    lines += (
        [
            "# All of this small UNet is trained. Of a large one LoRA is, a few megabytes: adapter: {rank: 4}, and a",
            "# learning rate of 3.0e-4.",
        ]
        if whole
        else [
            "# LoRA: a few megabytes are trained and saved. Without this line all of the UNet is.",
            "adapter: {rank: 4}",
        ]
    )
    if takes_prompts:
        lines += ["# What images are made from; a file of texts, one a line: prompts: {file: prompts.txt}", "prompts:"]
        lines += [f"  - {json.dumps(prompt, ensure_ascii=False)}" for prompt in wish.prompts]
        lines += [
            "# eta 1 draws noise in every step, which a policy gradient needs; 0 is deterministic DDIM.",
            f"sampler: {{steps: {steps}, eta: {eta}, guidance: {guidance}}}",
        ]
    else:
        lines.append(f"sampler: {{steps: {steps}, eta: {eta}}}")
    lines += _method_lines(method)
    lines += ["# Summed by weight; each part's own score stays in the metrics.", "reward:"]
    lines += [f"  - {_flow(_as_seen_from(folder, part))}" for part in wish.rewards]
    rate = 4.0e-4 if gradient else 2.0e-4 if whole else 3.0e-4
    lines += [
        f"optimizer: {{learning_rate: {rate}}}",
        "# Images from the same noise, scored every so many rounds: the report's pictures.",
        "evaluate: {every: 5, images: 16}",
        "# A round samples and scores images_per_round, then takes one step of the optimizer.",
        f"run: {{rounds: {wish.rounds}, images_per_round: {images}, save_every: 5}}",
        "# memory: every knob is chosen by `memdiff plan` and by the run; set one to keep it, such as",
        "# memory: {offload_optimizer: true}",
        "",
    ]
    return "\n".join(lines)


def _method_lines(method: str) -> list[str]:
    """The section `method`, with what it does."""
    if method == "reinforce":
        return [
            "# The reward is a number without a gradient: a policy gradient. kl_weight pulls to the base; balanced",
            "# weighs all steps of the chain alike, of which else the last, which draw fine detail, have most.",
            "method: {kind: reinforce, step_weights: balanced}",
        ]
    return [
        "# The reward's gradient through the last step alone; last_steps: all goes through the whole chain, and",
        "# kind: alignprop draws how far. Follow a reward too long and images look alike: watch diversity.",
        f"method: {_flow({'kind': method, **({'last_steps': 1} if method == 'draft' else {})})}",
    ]


def _flow(mapping: Mapping[str, Any]) -> str:
    """`{a: b, c: d}` on one line."""
    first = {key: mapping[key] for key in ("kind", *mapping) if key in mapping}
    return yaml.safe_dump(first, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()
