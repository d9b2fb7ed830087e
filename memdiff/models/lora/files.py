"""Adapters on disk: PEFT folders and diffusers LoRA files, read into the same thing.

The step window lies in the safetensors header, under a key that peft and diffusers pass over: they apply an adapter at
all steps.

Shapes: R ranks, I inputs, O outputs, h w a convolution's kernel. A is R I (R I h w), B is O R (O R 1 1).
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from memdiff.errors import ConfigError, NumericError
from memdiff.models.lora.paths import DIFFUSERS_NAME, PEFT_NAME, find_adapter

PREFIXES = ("base_model.model.", "unet.", "module.", "_orig_mod.")  # peft, diffusers, DDP, torch.compile
DIFFUSERS_KEY = "lora_adapter_metadata"  # diffusers 0.42: diffusers.loaders.lora_base.LORA_ADAPTER_METADATA_KEY
WINDOW_KEY = "memdiff_adapter_steps"
FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Factors:
    """dW = scaling B A of one layer; fp32 on the host."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class StepWindow:
    """Steps start, ..., end - 1 of a chain of `of` steps."""

    start: int
    end: int
    of: int


@dataclass(frozen=True)
class StoredAdapter:
    """What a file holds, by the layers' names in the network."""

    file: Path
    layers: Mapping[str, Factors]
    window: StepWindow | None  # None: all steps
    targets: tuple[str, ...] = ()  # names, or ends of names, of all layers that it has; empty: not said


def write_peft(
    folder: Path, weights: Mapping[str, torch.Tensor], config: peft.LoraConfig, window: StepWindow | None
) -> None:
    """adapter_config.json and safetensors, as `peft.PeftModel.from_pretrained` reads them.

    `weights` are named as in the network. Raises NumericError where they are not finite.
    """
    state = {f"base_model.model.{name}": weight for name, weight in _checked(weights).items()}
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    _write(folder / PEFT_NAME, state, {"format": "pt"} | _window_header(window))


def write_diffusers(
    folder: Path, weights: Mapping[str, torch.Tensor], config: peft.LoraConfig, window: StepWindow | None
) -> None:
    """The file that diffusers' `load_lora_weights` reads, its alpha in the header.

    Without the header diffusers takes alpha for equal to the rank. Raises NumericError as `write_peft` does.
    """
    state = {f"unet.{name}": weight for name, weight in _checked(weights).items()}
    about = {f"unet.{key}": list(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", DIFFUSERS_KEY: json.dumps(about, indent=2, sort_keys=True)}
    _write(folder / DIFFUSERS_NAME, state, header | _window_header(window))


def read_adapter(path: Path) -> StoredAdapter:
    """Of a PEFT folder, a diffusers LoRA file or folder, or a run folder; wrapper prefixes are taken off the names.

    Raises ConfigError where the file is damaged, or holds something else than plain LoRA of one network.
    """
    file = find_adapter(path)
    state, header = _load(file)
    config = _config_of(file, header)
    if config.get("use_dora"):
        raise ConfigError(f"{file} holds DoRA, which memdiff does not apply; it takes plain LoRA")
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        match = FACTOR.fullmatch(plain_name(name))
        if match is None or name.startswith("text_encoder"):
            raise ConfigError(f"{file} holds {name}; memdiff applies LoRA of the denoiser, named lora_A and lora_B")
        if not tensor.isfinite().all():
            raise ConfigError(f"{file} holds values that are not finite, in {name}")
        factors.setdefault(match["layer"], {})[match["side"]] = tensor.float()
    if not factors:
        raise ConfigError(f"{file} is empty")
    return StoredAdapter(
        file,
        {layer: _factors(file, layer, pair, config) for layer, pair in factors.items()},
        _window_of(header),
        _targets_of(config),
    )


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put before it, in whatever order."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name.replace("._orig_mod.", ".")  # a block that was compiled alone


def _factors(file: Path, layer: str, pair: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Factors:
    if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        raise ConfigError(f"{file} is damaged: lora_A and lora_B of {layer} don't belong together")
    rank = pair["A"].shape[0]
    pattern = config.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), layer), config.get("lora_alpha"))
    scaling = 1.0 if alpha is None else alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Factors(pair["A"], pair["B"], scaling)


def _config_of(file: Path, header: Mapping[str, str]) -> Mapping[str, Any]:
    """The LoraConfig beside or inside the file; empty where there is none (then alpha is the rank)."""
    beside = file.with_name("adapter_config.json")
    try:
        if file.name != DIFFUSERS_NAME and beside.is_file():
            return json.loads(beside.read_text())
        return {plain_name(key): value for key, value in json.loads(header.get(DIFFUSERS_KEY, "{}")).items()}
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"what {file} says of its rank and alpha can't be read; save the adapter anew") from None


def _targets_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the config lists them; not where it narrows them down further, or gives a pattern."""
    targets = config.get("target_modules")
    narrowed = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
    return tuple(targets) if isinstance(targets, list) and not narrowed else ()


def _load(file: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} can't be read as safetensors ({str(error)[:100]})") from None


def _window_header(window: StepWindow | None) -> dict[str, str]:
    return {} if window is None else {WINDOW_KEY: json.dumps(vars(window))}


def _window_of(header: Mapping[str, str]) -> StepWindow | None:
    return StepWindow(**json.loads(header[WINDOW_KEY])) if WINDOW_KEY in header else None


def _checked(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of the network (`x.lora_A.default.weight`) to those of files (`x.lora_A.weight`)."""
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken:
        raise NumericError(f"the adapter is not finite in {broken[0]} and {len(broken) - 1} more; it is not saved")
    if not any(weight.any() for name, weight in weights.items() if ".lora_B." in name):
        _log.warning("the adapter that is saved changes nothing: lora_B is zero in all layers")
    return {name.replace(".default.weight", ".weight"): weight.contiguous().cpu() for name, weight in weights.items()}


def _write(file: Path, state: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    """Under its name only when it is whole."""
    partial = file.with_name(file.name + ".tmp")
    save_file(state, partial, metadata=header)
    partial.replace(file)
