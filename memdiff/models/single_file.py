"""Stable Diffusion 1.x and SDXL from a checkpoint in one file, as people share them.

The tensors' names are translated by the functions behind diffusers' own `from_single_file` (0.42), and every weight is
accounted for, which that does not do. What such a file doesn't hold - configs, scheduler, tokenizer - is written down
(memdiff.models.architectures), but for the tokenizer's vocabulary, or comes from `model.config`.
"""

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from memdiff.errors import ConfigError
from memdiff.models.architectures import LatentArchitecture
from memdiff.models.config import CLIP_TOKENIZER, SdxlConfig, StableDiffusionConfig
from memdiff.models.latent import LatentParts
from memdiff.models.networks import check_report, own_memory
from memdiff.models.single_file_kinds import OPEN_CLIP, check_shapes, check_vae_shapes
from memdiff.models.source import quiet_hub
from memdiff.models.vae_files import vae_class
from memdiff.runtime.state_dicts import assign_strictly, read_pickle, read_safetensors, refuse_repeated_numbers

Tensors = dict[str, torch.Tensor]

# Older programs left a level out of the text encoder's names.
FLAT_CLIP = re.compile(r"^(cond_stage_model\.transformer\.)(?=embeddings\.|encoder\.|final_layer_norm\.)")

MOST_WRAPPERS = 3  # mappings around the tensors

ENCODERS: Mapping[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}

_log = logging.getLogger(__name__)


def read_tensors(file: Path) -> Tensors:
    """Every tensor of the file by its name, mapped where possible. Nothing in a pickle is run.

    Raises ConfigError where the file is damaged, or holds more than tensors.
    """
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    try:
        content = read_pickle(file, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged file ends in whatever exception its bytes lead to
        reason = " ".join(str(error).split())[:80]
        raise ConfigError(
            f"{file} is damaged, or a pickle of more than tensors, which could run code when it is read, and is not "
            f"({type(error).__name__}: {reason}); give the model's .safetensors file"
        ) from None
    for _ in range(MOST_WRAPPERS):  # a mapping may hold itself
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ConfigError(f"{file} holds a {type(content).__name__}, and no tensors by their names")
    tensors = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    refuse_repeated_numbers(file, tensors.values())
    return tensors


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor in the file, by its name."""
    return {name: tuple(tensor.shape) for name, tensor in read_tensors(file).items()}


def read_single_file(
    model: StableDiffusionConfig | SdxlConfig,
    architecture: LatentArchitecture,
    tokenizers: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    vae: tuple[Any, str] | None,
    vae_dtype: torch.dtype,
) -> LatentParts:
    """A model's parts on the host, each network in its dtype. `vae`: another than the file's own, and its name.

    Raises ConfigError in one line where the file is of another kind, lacks a network or a weight of one.
    """
    file = Path(model.path)
    tensors = read_tensors(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes(file, shapes, model.kind, with_vae=vae is None, with_config=model.config is not None)
    if any(name.startswith("model_ema.") for name in tensors):
        _log.info("%s holds averaged weights (EMA) too; the plain ones are read, as diffusers does", file)
    tensors = {FLAT_CLIP.sub(r"\1text_model.", name): tensor for name, tensor in tensors.items()}
    with _one_line(f"model.path {file}", "a model"):
        weights = translated(tensors, architecture)
        del tensors
        unet = _network(UNet2DConditionModel, architecture.unet, weights["unet"], f"model.path {file}: unet", dtype)
        if vae is None:
            kind, name = vae_class(architecture.vae), f"model.path {file}: vae"
            vae = _network(kind, architecture.vae, weights["vae"], name, vae_dtype), f"the VAE of {file}"
        encoders = {
            part: _text_encoder(ENCODERS[part], config, weights[part], f"model.path {file}: {part}", dtype)
            for part, config in _text_configs(architecture).items()
        }
    return LatentParts(
        unet=unet,
        vae=vae[0],
        scheduler=DDIMScheduler(**architecture.scheduler),
        text_encoders=encoders,
        tokenizers=tokenizers,
        size=model.size,
        zero_negative=architecture.zero_negative,
        vae_name=vae[1],
    )


def read_vae_file(file: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A VAE of this config from one file: alone or within a whole model, by the original code's names or diffusers'.

    Raises ConfigError in one line where the file holds none, or one of another architecture.
    """
    tensors = read_tensors(file)
    check_vae_shapes(file, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with _one_line(f"model.vae {file}", "a VAE"):
        if not any("decoder.up_blocks." in name for name in tensors):
            tensors = convert_ldm_vae_checkpoint(tensors, dict(config))
        return _network(vae_class(config), config, tensors, f"model.vae {file}", dtype)


def translated(tensors: Tensors, architecture: LatentArchitecture) -> dict[str, Tensors]:
    """The tensors of a file by networks, under the names of diffusers and transformers."""
    configs = _text_configs(architecture)
    weights = {
        "unet": convert_ldm_unet_checkpoint(tensors, dict(architecture.unet)),
        "vae": convert_ldm_vae_checkpoint(tensors, dict(architecture.vae)),
        "text_encoder": convert_ldm_clip_checkpoint(tensors),
    }
    if "text_encoder_2" in configs:
        configured = SimpleNamespace(config=configs["text_encoder_2"])  # what the conversion asks of a text model
        weights["text_encoder_2"] = convert_open_clip_checkpoint(configured, tensors, prefix=OPEN_CLIP)
    return weights


def _text_configs(architecture: LatentArchitecture) -> dict[str, CLIPTextConfig]:
    configs = [CLIPTextConfig(**config) for config in architecture.text_encoders]
    return dict(zip(ENCODERS, configs, strict=False))


def _network(kind: Any, config: Mapping[str, Any], tensors: Tensors, name: str, dtype: torch.dtype) -> Any:
    """A network of diffusers with exactly these weights, in memory of its own."""
    with torch.device("meta"):
        network = kind.from_config(dict(config))
    assign_strictly(network, {key: tensor.to(dtype, copy=True) for key, tensor in tensors.items()}, name)
    return network.eval()


def _text_encoder(kind: Any, config: CLIPTextConfig, tensors: Tensors, name: str, dtype: torch.dtype) -> Any:
    """transformers' own loading translates the names that older versions wrote; what it reports is looked at."""
    network, report = kind.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    check_report(network, report, name=name)
    own_memory(network)
    return network.eval()


@contextmanager
def _one_line(name: str, what: str) -> Iterator[None]:
    """diffusers' conversion ends in whatever exception an unusual file leads to."""
    try:
        yield
    except (KeyError, IndexError, AttributeError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{name}: diffusers can't translate its tensors' names ({type(error).__name__}: {reason}); it must be "
            f"{what} in the layout of the original code, of the model's architecture (model.config says which)"
        ) from None


def read_tokenizers(model: StableDiffusionConfig | SdxlConfig) -> dict[str, Any]:
    """Of `model.config`, or CLIP's own from the hub's cache. SDXL pads its second with `!`. Raises ConfigError."""
    names = ("tokenizer", "tokenizer_2") if isinstance(model, SdxlConfig) else ("tokenizer",)
    source = model.config or CLIP_TOKENIZER
    try:
        with quiet_hub():
            if model.config is not None:
                return {name: CLIPTokenizer.from_pretrained(source, subfolder=name) for name in names}
            paddings: dict[str, dict[str, Any]] = {"tokenizer": {}, "tokenizer_2": {"pad_token": "!"}}
            return {name: CLIPTokenizer.from_pretrained(source, **paddings[name]) for name in names}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise ConfigError(no_tokenizer(model)) from None


def no_tokenizer(model: StableDiffusionConfig | SdxlConfig) -> str:
    """What is needed beside a file, in one line."""
    if model.config is not None:
        return f"model.config {model.config} holds no tokenizer that transformers reads; fetch its files again"
    return (
        f"model.path {model.path}: a model in one file has no tokenizer; fetch CLIP's once: hf download "
        f"{CLIP_TOKENIZER} vocab.json merges.txt tokenizer_config.json special_tokens_map.json; or set model.config to "
        "a diffusers folder of this kind of model"
    )
