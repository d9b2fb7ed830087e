"""What `memdiff sample` was asked for, checked. No torch."""

from pathlib import Path

from pydantic import Field, ValidationError

from memdiff.embedded.paths import DIGITS_DDPM
from memdiff.errors import ConfigError
from memdiff.models.config import EmbeddedConfig, Precision, SamplerConfig, resolve_source
from memdiff.run_folder import RunFolder
from memdiff.section import Int, Section

DEFAULT_BATCH = 32


class SampleRequest(Section):
    """Exactly `num_images` images from `pipeline`. Written beside the images as settings.json."""

    source: str = Field(description="As it was given.")
    pipeline: str = Field(description="The pipeline folder or hub id that is loaded.")
    num_images: Int = Field(ge=1)
    batch_size: Int = Field(ge=1)
    sampler: SamplerConfig
    seed: Int = Field(ge=0, lt=2**63)
    precision: Precision
    out: str


def make_request(
    source: str,
    *,
    best: bool,
    num_images: int,
    batch_size: int | None,
    steps: int | None,
    eta: float | None,
    seed: int,
    precision: str,
    out: Path | None,
) -> SampleRequest:
    """Fills what was not given from the run's recipe, or from the sampler's defaults. Raises ConfigError."""
    if source == "digits" and not best:
        pipeline, sampler, default_out = str(DIGITS_DDPM), SamplerConfig(), Path("samples")
    else:
        pipeline, sampler, default_out = _locate(source, best=best)
    given = {key: value for key, value in (("steps", steps), ("eta", eta)) if value is not None}
    try:
        return SampleRequest(
            source=source,
            pipeline=pipeline,
            num_images=num_images,
            batch_size=min(batch_size or DEFAULT_BATCH, num_images),
            sampler=SamplerConfig.model_validate(sampler.model_dump() | given),
            seed=seed,
            precision=precision,  # pyright: ignore[reportArgumentType]
            out=str((out or default_out).resolve()),
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(key) for key in first["loc"])
        raise ConfigError(f"{name}: {first['msg']}, got {first['input']!r}") from None


def _locate(source: str, *, best: bool) -> tuple[str, SamplerConfig, Path]:
    """(pipeline, the sampler it was trained with, where samples go) of a run folder, a pipeline folder or a hub id."""
    run = RunFolder(Path(source))
    if run.exists():
        recipe = run.recipe()
        model = run.best_model if best else run.model
        if (model / "model_index.json").is_file():
            return str(model), recipe.sampler, run.path / "samples_from_model"
        if isinstance(recipe.model, EmbeddedConfig) or best:
            raise ConfigError(f"{source} holds no {model.name} yet; it is written when the run ends")
        raise ConfigError(f"{source} holds no finished model; let the run end, or sample its base: {recipe.model.path}")
    if best:
        raise ConfigError(f"--best needs a run folder, got {source}")
    try:
        pipeline = resolve_source(source, None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if Path(pipeline).is_dir() and not (Path(pipeline) / "model_index.json").is_file():
        raise ConfigError(f"{source} is neither a run folder (config.yaml) nor a pipeline folder (model_index.json)")
    return pipeline, SamplerConfig(), Path("samples")
