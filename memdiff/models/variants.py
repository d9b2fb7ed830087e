"""Which files of a network's weights are read: the plain ones, or those of a variant such as fp16."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memdiff.errors import ConfigError

if TYPE_CHECKING:
    from memdiff.models.config import PipelineConfig

# Plain, of a variant, one of several shards: diffusers has put the variant on either side of the shard's number.
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<before>[\w-]+?))?(-\d+-of-\d+)?(\.(?P<after>[\w-]+))?"
    r"\.(safetensors|bin)"
)
SECONDS_FOR_HUB = 10.0

Model = TypeVar("Model", bound="PipelineConfig")


def variant_of(file: Path) -> tuple[str | None] | None:
    """The variant of a file of weights, (None,) of the plain one; None where it is no file of weights."""
    match = WEIGHTS.fullmatch(file.name)
    return (match["before"] or match["after"],) if match else None


def variants_in(folder: Path) -> set[str | None]:
    """Of the weights in a folder: `fp16` for diffusion_pytorch_model.fp16.safetensors, None for the plain file."""
    return variants_among(folder.iterdir())


def variants_among(files: Iterable[Path]) -> set[str | None]:
    """The same of files by their names."""
    return {variant[0] for file in files if (variant := variant_of(file)) is not None}


def chosen_variant(there: set[str | None], variant: str | None, *, where: object) -> str | None:
    """The variant itself where a network has it, else its plain files, else the only one that it has.

    Raises ConfigError where there are several and none is asked for.
    """
    if variant in there or not there:
        return variant if there else None
    if None in there:
        return None
    if len(there) > 1:
        raise ConfigError(
            f"{where} holds weights of the variants {', '.join(sorted(map(str, there)))} alone; set model.variant"
        )
    return next(iter(there))


def with_its_variant(model: Model, parts: Iterable[str]) -> Model:
    """The model, with the variant that it has alone on the hub where it has no plain weights of one of its `parts`.

    diffusers fetches plain files and no others where it is told of no variant. Folders are looked at where they are
    read. Raises ConfigError where there are several variants.
    """
    if model.variant is not None or Path(model.path).is_absolute():
        return model
    files = [Path(name) for name in _cached(model.path, model.revision) or _on_hub(model.path, model.revision)]
    for part in parts:
        there = variants_among(file for file in files if file.parent.name == part)
        variant = chosen_variant(there, None, where=f"model.path {model.path}: {part}")
        if variant is not None:
            return model.model_copy(update={"variant": variant})
    return model


def _cached(source: str, revision: str | None) -> list[str]:
    """The files of weights that lie in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, "model_index.json", revision=revision)
    if not isinstance(index, str):
        return []
    files = Path(index).parent.glob("*/*")
    return [str(Path(file.parent.name, file.name)) for file in files if variant_of(file) is not None]


def _on_hub(source: str, revision: str | None) -> list[str]:
    """All files of a repository; none where the hub can't be asked, which loading the model will tell."""
    from huggingface_hub import HfApi

    try:
        siblings: Any = HfApi().model_info(source, revision=revision, timeout=SECONDS_FOR_HUB).siblings
    except Exception:  # offline, no such repository, terms not accepted, no network
        return []
    return [sibling.rfilename for sibling in siblings or ()]
