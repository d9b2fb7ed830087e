"""What lies at the SOURCE of `memdiff sample`: a model, its adapter, and how it was sampled in training. No torch."""

from dataclasses import dataclass
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.models.config import (
    EMBEDDED,
    DdpmConfig,
    EmbeddedConfig,
    LatentConfig,
    ModelConfig,
    StableDiffusionConfig,
    resolve_source,
    takes_prompts,
)
from memdiff.models.lora.names import DIFFUSERS_NAME, PEFT_NAME
from memdiff.models.lora.paths import find_adapter
from memdiff.models.sampler_config import SamplerConfig
from memdiff.recipe.prompts import PromptsConfig
from memdiff.training.run_folder import RunFolder

RUNS = "runs"  # where `memdiff train` puts runs without --out
GUIDANCE = 7.5  # of text models that come without a recipe: what diffusers takes for Stable Diffusion


@dataclass(frozen=True)
class Source:
    """A model without its adapter, and what else is known of it."""

    model: ModelConfig
    sampler: SamplerConfig
    out: Path  # where samples go
    adapter: Path | None = None
    prompts: PromptsConfig | None = None
    trained_in_full: bool = False


def locate(source: str, *, best: bool, own_adapter: bool, config: str | None = None) -> Source:
    """Of a run folder, a pipeline folder or file, a hub id or an embedded model's name. Raises ConfigError.

    `best`: the best evaluated weights of a run, not the last. Without `own_adapter` a run's adapter is left out, and
    need not exist. `config`: as `model.config` of a recipe, for a model in one file.
    """
    run = RunFolder(Path(source))
    if config is not None and not Path(source).is_file():
        raise ConfigError(f"--config goes with a model in one file, and {source} is none; leave it out")
    if run.exists():
        return _of_run(source, run, best=best, own_adapter=own_adapter)
    if best:
        raise ConfigError(f"--best needs a run folder, got {source}")
    _check_no_run_is_meant(source)
    model = (
        EmbeddedConfig.model_validate({"kind": "embedded", "name": source})
        if source in EMBEDDED
        else _of(source, config)
    )
    guidance = GUIDANCE if takes_prompts(model) else None
    return Source(model, SamplerConfig(guidance=guidance), Path("samples"))


def _check_no_run_is_meant(source: str) -> None:
    """Raises ConfigError for `runs/NAME` that is not there, beside runs that are: the hub would be asked in vain."""
    folder = Path(source).parent
    if folder != Path(RUNS) or Path(source).exists() or not folder.is_dir():
        return
    runs = sorted(path.name for path in folder.iterdir() if RunFolder(path).exists())
    if runs:
        raise ConfigError(f"no such run: {source}; {RUNS}/ holds {', '.join(runs[:8])}{', ...' if runs[8:] else ''}")


def _of_run(source: str, run: RunFolder, *, best: bool, own_adapter: bool) -> Source:
    recipe = run.recipe()
    saved, out = run.best_model if best else run.model, run.path / "samples_from_model"
    if recipe.adapter is None:
        if not (saved / "model_index.json").is_file():
            raise _unfinished(source, saved, recipe.model)
        return Source(_saved_as(saved, recipe.model), recipe.sampler, out, None, recipe.prompts, trained_in_full=True)
    if not own_adapter:
        if best:
            raise ConfigError(
                f"--best chooses between {source}'s own adapters, which --mix leaves out; name one: "
                f"--mix {run.best_model}=1"
            )
        return Source(recipe.model, recipe.sampler, out, None, recipe.prompts)
    if not any((saved / name).is_file() for name in (DIFFUSERS_NAME, f"adapter/{PEFT_NAME}")):
        raise _unfinished(source, saved, recipe.model)
    return Source(recipe.model, recipe.sampler, out, find_adapter(saved), recipe.prompts)


def _unfinished(source: str, saved: Path, model: ModelConfig) -> ConfigError:
    base = model.name if isinstance(model, EmbeddedConfig) else model.path
    return ConfigError(
        f"{source} holds no {saved.name} yet; it is written when the run ends. Let it, or sample its base: {base}"
    )


def _saved_as(folder: Path, model: ModelConfig) -> ModelConfig:
    """The section for a pipeline that a run wrote, which holds all its networks."""
    path = str(folder.resolve())
    match model:
        case EmbeddedConfig(name="digits"):
            return DdpmConfig(kind="ddpm", path=path)
        case EmbeddedConfig():
            return StableDiffusionConfig(kind="stable_diffusion", path=path)
        case _:
            kept = {"vae": None, "config": None} if isinstance(model, LatentConfig) else {}
            return model.model_copy(update={"path": path, "revision": None, "variant": None, **kept})


def _of(source: str, config: str | None) -> ModelConfig:
    """A pipeline folder's, a checkpoint's in one file, or a hub id's."""
    try:
        pipeline = resolve_source(source, None, files=True)
        config = None if config is None else resolve_source(config, None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if Path(pipeline).is_dir() and not (Path(pipeline) / "model_index.json").is_file():
        raise ConfigError(f"{source} is neither a run folder (config.yaml) nor a pipeline folder (model_index.json)")
    from memdiff.models.load import model_of

    return model_of(pipeline, config=config)
