"""What a pipeline's folder holds, by its files alone: whether parts are missing, how layers are called. No torch.

Layers are read from the headers of safetensors, in milliseconds; what these leave open, loading the model decides.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import assert_never

from memdiff.digits.paths import DIGITS_DDPM, DIGITS_TEXT
from memdiff.errors import ConfigError
from memdiff.models.config import (
    CLIP_TOKENIZER,
    AdapterConfig,
    DdpmConfig,
    EmbeddedConfig,
    LatentConfig,
    ModelConfig,
    SdxlConfig,
    StableDiffusionConfig,
)
from memdiff.models.single_file_kinds import check_shapes, check_vae_shapes, shapes_of
from memdiff.runtime.hub import why_unreachable
from memdiff.runtime.weight_headers import read_header

INDEX = "model_index.json"
WORDS = "vocab.json"  # of CLIP's tokenizer
WEIGHTS = ("*.safetensors", "*.bin")
PIPELINE_KINDS = {  # by the class that model_index.json names
    "DDPMPipeline": "ddpm",
    "DDIMPipeline": "ddpm",
    "PNDMPipeline": "ddpm",
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "sdxl",
}
TEXT_PARTS = ("text_encoder", "tokenizer", "scheduler", "unet", "vae")
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
OLD_NAMES = re.compile(r"\.(query|key|value|proj_attn)\.weight$")  # of attention, which diffusers renames


def folder_of(model: ModelConfig) -> Path | None:
    """The model's folder; None where it is a hub id that is not in the cache."""
    if isinstance(model, EmbeddedConfig):
        return DIGITS_DDPM if model.name == "digits" else DIGITS_TEXT
    if Path(model.path).is_absolute():  # a folder, or a checkpoint in one file, which has no files of parts
        return Path(model.path) if Path(model.path).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.path, INDEX, revision=model.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def to_be_fetched(model: ModelConfig) -> list[tuple[str, str, str | None]]:
    """What it is in the recipe, hub id and revision of all that is neither here nor in the hub's cache."""
    if isinstance(model, EmbeddedConfig):
        return []
    wanted = [("model.path", model.path, model.revision, INDEX)]
    if isinstance(model, LatentConfig):
        if model.in_one_file and model.config is None:
            wanted.append(("the tokenizer of a model in one file (or set model.config),", CLIP_TOKENIZER, None, WORDS))
        wanted += [("model.config", model.config, None, INDEX)] if model.config is not None else []
        wanted += [("model.vae", model.vae, None, "config.json")] if model.vae is not None else []
    return [(what, path, revision) for what, path, revision, file in wanted if not _is_here(path, revision, file)]


def refuse_unreachable(what: str, path: str, revision: str | None = None, file: str = INDEX) -> None:
    """Raises ConfigError, in one line and at once, where `file` has to be fetched and there is no hub to ask.

    With HF_HUB_OFFLINE set the hub's library says so at once itself.
    """
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE or Path(path).exists() or _is_here(path, revision, file):
            return
    except (OSError, ValueError):  # no path and no hub id, which loading it says
        return
    reason = why_unreachable()
    if reason:
        raise no_way_to(what, path, reason)


def no_way_to(what: str, path: str, reason: str) -> ConfigError:
    """What has to be fetched and can't be."""
    return ConfigError(
        f"{what} {path} is no folder here and not in the hub's cache, and {reason}; fetch it where there is a network, "
        f"and copy the cache: hf download {path}"
    )


def _is_here(path: str, revision: str | None, file: str) -> bool:
    """Whether a folder or file lies at an absolute path, or the file of a hub id in its cache."""
    if Path(path).is_absolute():
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(path, file, revision=revision), str)


def check_folder(model: ModelConfig) -> None:
    """Raises ConfigError where a local pipeline folder is no pipeline, or lacks a part's config or weights.

    Of a checkpoint in one file: where its tensors' names are those of another kind of model.
    """
    if isinstance(model, EmbeddedConfig):
        return
    if isinstance(model, LatentConfig) and model.vae_file is not None:
        shapes = shapes_of(model.vae_file)
        if shapes is not None:
            check_vae_shapes(model.vae_file, shapes)
    if isinstance(model, LatentConfig) and model.in_one_file:
        shapes = shapes_of(Path(model.path))
        if shapes is not None:
            own_vae, has_config = model.vae is None, model.config is not None
            check_shapes(Path(model.path), shapes, model.kind, with_vae=own_vae, with_config=has_config)
        return
    if not Path(model.path).is_dir():
        return
    folder, where = Path(model.path), f"model.path {model.path}"
    if not (folder / INDEX).is_file():
        what = "is empty" if not any(folder.iterdir()) else f"has no {INDEX}"
        raise ConfigError(f"{where} {what}; give a whole diffusers pipeline folder")
    lacking = [lack for part in _parts(model) for lack in _lacking(folder, part)]
    if lacking:
        raise ConfigError(f"{where} is not complete: {', '.join(lacking)}; fetch its files again")


def _parts(model: DdpmConfig | StableDiffusionConfig | SdxlConfig) -> tuple[str, ...]:
    """The parts that are read of a pipeline of this kind."""
    match model:
        case DdpmConfig():
            return ("scheduler", "unet")
        case StableDiffusionConfig() | SdxlConfig():
            second = ("text_encoder_2", "tokenizer_2") if isinstance(model, SdxlConfig) else ()
            return tuple(part for part in (*TEXT_PARTS, *second) if part != "vae" or model.vae is None)
        case _:
            assert_never(model)


def _lacking(folder: Path, part: str) -> list[str]:
    """What a part has not got. The parts of some old pipelines lie in the folder itself."""
    place = folder / part if (folder / part).is_dir() else folder
    if part not in NETWORKS:
        config = f"{part}_config.json" if part == "scheduler" else "*"
        return [] if any(file.is_file() for file in place.glob(config)) else [f"{part}/ holds nothing"]
    lacking = [] if (place / "config.json").is_file() else [f"{part}/config.json is missing"]
    files = [file for pattern in WEIGHTS for file in place.glob(pattern) if file.is_file()]
    if not files:
        lacking.append(f"{part}/ holds no weights ({' or '.join(WEIGHTS)})")
    return lacking + [f"{part}/{file.name} is an empty file" for file in files if file.stat().st_size == 0]


def unet_layers(folder: Path) -> dict[str, int] | None:
    """Paths of the UNet's weights, with their number of dimensions; None where the files don't say it for sure."""
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    layers: dict[str, int] = {}
    for file in filter(Path.is_file, place.glob("*.safetensors")):
        try:
            layers |= {key: len(tensor.shape) for key, tensor in read_header(file).tensors.items()}
        except ValueError:
            return None
    return None if not layers or any(OLD_NAMES.search(key) for key in layers) else layers


def check_layers(layers: dict[str, int], adapter: AdapterConfig | None, modules: Iterable[str] | None) -> None:
    """Raises ConfigError where an adapter's target names none of `unet_layers`, or a trained module holds none."""
    adaptable = [key.removesuffix(".weight") for key, dimensions in layers.items() if dimensions in (2, 4)]
    for target in adapter.targets if adapter is not None else ():
        if not any(f".{layer}".endswith(f".{target}") for layer in adaptable):
            endings = sorted({".".join(layer.split(".")[-1 - layer[-1].isdigit() :]) for layer in adaptable})
            raise ConfigError(f"adapter.targets: no layer is named {target}; there are {', '.join(endings)}")
    for module in modules or ():
        if not any(key.startswith(f"{module}.") for key in layers):
            tops = sorted({key.partition(".")[0] for key in layers})
            raise ConfigError(f"trained_modules: the UNet has no {module}; it has {', '.join(tops)}")
