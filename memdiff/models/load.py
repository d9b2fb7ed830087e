"""From a recipe's `model` to a policy: what kind of pipeline lies there, and the module that reads it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import assert_never

import torch
from diffusers import DiffusionPipeline
from pydantic import TypeAdapter

from memdiff.digits.paths import DIGITS_DDPM, DIGITS_TEXT
from memdiff.errors import ConfigError, MemdiffError
from memdiff.models.architectures import DDPMS, LATENTS
from memdiff.models.config import DdpmConfig, EmbeddedConfig, ModelConfig, SdxlConfig, StableDiffusionConfig
from memdiff.models.ddpm import load_ddpm, skeleton_ddpm
from memdiff.models.folder import NETWORKS, PIPELINE_KINDS, refuse_unreachable
from memdiff.models.options import ModelOptions
from memdiff.models.policy import Policy
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.single_file_kinds import kind_of_file, shapes_of
from memdiff.models.source import no_pipeline, quiet_hub
from memdiff.models.variants import with_its_variant
from memdiff.runtime.network_files import trouble_in


def pipeline_kind(source: str, *, revision: str | None = None) -> str:
    """ddpm, stable_diffusion or sdxl, by the class that model_index.json names, or by a single file's tensors.

    Raises ConfigError where there is no pipeline, or one of another class.
    """
    if Path(source).is_file():
        from memdiff.models.single_file import shapes_in

        file = Path(source)
        return kind_of_file(file, shapes_of(file) or shapes_in(file))
    if Path(source).is_dir() and (trouble := trouble_in(Path(source))) is not None:
        raise ConfigError(trouble)
    refuse_unreachable("model.path", source, revision)
    try:
        with quiet_hub():
            index = DiffusionPipeline.load_config(source, revision=revision)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise no_pipeline(source, error) from None
    name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str) or name not in PIPELINE_KINDS:
        raise ConfigError(
            f"{source} is a pipeline of class {name!s:.80}; memdiff takes {', '.join(sorted(PIPELINE_KINDS))}"
        )
    return PIPELINE_KINDS[name]


def check_kind(model: DdpmConfig | StableDiffusionConfig | SdxlConfig) -> None:
    """Raises ConfigError where the pipeline is of another kind than the recipe says."""
    kind = pipeline_kind(model.path, revision=model.revision)
    if kind != model.kind:
        raise ConfigError(f"model.path {model.path} holds a pipeline of kind {kind}; set model.kind: {kind}")


def model_of(
    source: str, *, revision: str | None = None, variant: str | None = None, config: str | None = None
) -> ModelConfig:
    """The recipe section that a pipeline folder, a hub id or, with a `config`, one file would have, else by default."""
    section = {"kind": pipeline_kind(source, revision=revision), "path": source, "revision": revision}
    section |= {"variant": variant} | ({} if config is None else {"config": config})
    return TypeAdapter(ModelConfig).validate_python(section)


@contextmanager
def told_in_one_line(source: str) -> Iterator[None]:
    """What a damaged or foreign folder says ends in whatever exception it leads to, and is told as ConfigError."""
    try:
        yield
    except (MemdiffError, AssertionError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise no_pipeline(source, error) from error


def load_policy(model: ModelConfig, sampler: SamplerConfig, options: ModelOptions, *, device: torch.device) -> Policy:
    """The policy that a recipe names.

    Raises ConfigError in one line where there is no such pipeline, or it is of another kind.
    """
    if isinstance(model, EmbeddedConfig):
        model = embedded_source(model)
    check_kind(model)
    with told_in_one_line(model.path):
        model = with_its_variant(model, NETWORKS)
        match model:
            case DdpmConfig():
                return load_ddpm(model, sampler, options, device=device)
            case StableDiffusionConfig() | SdxlConfig():
                from memdiff.models.latent_files import load_latent

                return load_latent(model, sampler, options, device=device)
            case _:
                assert_never(model)


def skeleton_policy(
    model: ModelConfig, sampler: SamplerConfig, options: ModelOptions, *, device: torch.device
) -> Policy:
    """The same without its weights, for plans: nothing is downloaded for models whose architecture is written down.

    Raises ConfigError where it is neither written down nor to be read.
    """
    if isinstance(model, EmbeddedConfig):
        model = embedded_source(model)
    if model.path not in {**DDPMS, **LATENTS}:
        check_kind(model)
    with told_in_one_line(model.path):
        match model:
            case DdpmConfig():
                return skeleton_ddpm(model, sampler, options, device=device)
            case StableDiffusionConfig() | SdxlConfig():
                from memdiff.models.latent_files import skeleton_latent

                return skeleton_latent(model, sampler, options, device=device)
            case _:
                assert_never(model)


def embedded_source(model: EmbeddedConfig) -> DdpmConfig | StableDiffusionConfig:
    """The pipeline folder that ships with memdiff."""
    match model.name:
        case "digits":
            return DdpmConfig(kind="ddpm", path=str(DIGITS_DDPM))
        case "digits_text":
            return StableDiffusionConfig(kind="stable_diffusion", path=str(DIGITS_TEXT))
        case _:
            assert_never(model.name)
