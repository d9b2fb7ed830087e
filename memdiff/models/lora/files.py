"""Adapters on disk: PEFT folders, diffusers' and kohya's LoRA files, read into the same thing.

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
from safetensors import safe_open
from safetensors.torch import save_file

from memdiff.errors import ConfigError, NumericError
from memdiff.models.lora.formats import is_kohya, to_kohya_names, to_network_names
from memdiff.models.lora.names import DIFFUSERS_NAME, KOHYA_NAME, PEFT_NAME
from memdiff.models.lora.paths import find_adapter
from memdiff.runtime.small_files import read_small_file
from memdiff.runtime.state_dicts import read_pickle, refuse_repeated_numbers

MOST_CONFIG_BYTES = 10**7
MOST_REPEATS = 3  # in a pattern of layers' names
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
    """The file that diffusers' `load_lora_weights` reads, and beside it one by kohya's key names for other programs.

    alpha / rank is multiplied into B, and both files say that alpha is the rank: converters drop a header, and then
    take it for that. Raises NumericError as `write_peft` does.
    """
    state = {f"unet.{name}": weight for name, weight in _folded(_checked(weights), config).items()}
    about = config.to_dict() | {"lora_alpha": config.r, "alpha_pattern": config.rank_pattern or {}}
    about = {f"unet.{key}": list(value) if isinstance(value, set) else value for key, value in about.items()}
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", DIFFUSERS_KEY: json.dumps(about, indent=2, sort_keys=True)}
    _write(folder / DIFFUSERS_NAME, state, header | _window_header(window))
    _write(folder / KOHYA_NAME, to_kohya_names(state), {"format": "pt"} | _window_header(window))


def read_adapter(path: Path, network_config: Any = None) -> StoredAdapter:
    """Of a PEFT folder, a LoRA file or folder of diffusers or kohya, or a run; names are those of the network.

    `network_config` is the UNet's, which some key names are counted by. Raises ConfigError where the file is damaged,
    or holds something else than plain LoRA of one network.
    """
    file = find_adapter(path)
    state, header = _load(file)
    # kohya's files have their alphas in them, and none when they are read.
    config = {} if is_kohya(state) else _config_of(file, header)
    if config.get("use_dora"):
        raise ConfigError(f"{file} holds DoRA, which memdiff does not apply; it takes plain LoRA")
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in to_network_names(file, state, network_config).items():
        match = FACTOR.fullmatch(plain_name(name))
        if match is None:
            raise ConfigError(f"{file} holds {name}; memdiff applies LoRA of the denoiser, named lora_A and lora_B")
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise ConfigError(f"{file} is damaged: {name} holds {tensor.dtype}, {tensor.layout}, and no plain floats")
        factor = tensor.float()  # an 8-bit float can't be asked whether it is finite
        if not factor.isfinite().all():
            raise ConfigError(f"{file} holds values that are not finite, in {name}")
        factors.setdefault(match["layer"], {})[match["side"]] = factor
    if not factors:
        raise ConfigError(f"{file} is empty")
    return StoredAdapter(
        file,
        {layer: _factors(file, layer, pair, config) for layer, pair in factors.items()},
        _window_of(file, header),
        _targets_of(config),
    )


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put before it, in whatever order."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name.replace("._orig_mod.", ".")  # a block that was compiled alone


def _factors(file: Path, layer: str, pair: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Factors:
    if set(pair) != {"A", "B"} or not _are_a_product(**pair):
        raise ConfigError(f"{file} is damaged: lora_A and lora_B of {layer} don't belong together")
    return Factors(pair["A"], pair["B"], _scaling(layer, pair["A"].shape[0], config))


def _are_a_product(A: torch.Tensor, B: torch.Tensor) -> bool:
    """Of one rank, which is not 0; B without a kernel of its own."""
    rank, kernel = A.shape[:1], B.shape[2:]
    return A.ndim == B.ndim >= 2 and 0 < rank[0] == B.shape[1] and all(side == 1 for side in kernel)


def _scaling(layer: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / rank of one layer as peft reads a config; 1 where it says nothing."""
    pattern = config.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), layer), config.get("lora_alpha"))
    return 1.0 if alpha is None else alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _folded(weights: Mapping[str, torch.Tensor], config: peft.LoraConfig) -> dict[str, torch.Tensor]:
    """The same dW at a scaling of 1: `x.lora_B.weight` times its layer's alpha / rank."""
    said, folded = config.to_dict(), dict(weights)
    for name, weight in weights.items():
        layer, is_b, _ = name.partition(".lora_B.")
        scaling = _scaling(layer, weight.shape[1], said) if is_b else 1.0
        if scaling != 1.0:
            folded[name] = weight * scaling
    return folded


def _config_of(file: Path, header: Mapping[str, str]) -> Mapping[str, Any]:
    """The LoraConfig beside or inside the file; empty where there is none (then alpha is the rank)."""
    beside = file.with_name("adapter_config.json")
    try:
        if file.name != DIFFUSERS_NAME and beside.is_file():
            said = dict(json.loads(read_small_file(beside, what="the config", most_bytes=MOST_CONFIG_BYTES)).items())
        else:
            said = {plain_name(key): value for key, value in json.loads(header.get(DIFFUSERS_KEY, "{}")).items()}
        pattern = dict(said.get("alpha_pattern") or {})
        alphas = [said.get("lora_alpha"), *pattern.values()]
        if not all(alpha is None or (isinstance(alpha, int | float) and math.isfinite(alpha)) for alpha in alphas):
            raise ValueError
        if not all(map(_ends_soon, pattern)):
            raise ValueError
        _scaling("a layer", 1, said)  # looks at every key of alpha_pattern, which are regular expressions
        return said
    except (OSError, ValueError, OverflowError, AttributeError, TypeError, RecursionError, re.error):
        raise ConfigError(f"what {file} says of its rank and alpha can't be read; save the adapter anew") from None


def _ends_soon(pattern: str) -> bool:
    """Whether a stranger's regular expression can't keep a search going: that of nested repeats takes for ever."""
    repeats = sum(map(pattern.count, "*+?{"))
    return repeats <= (1 if "(" in pattern else MOST_REPEATS)


def _targets_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the config lists them; not where it narrows them down further, or gives a pattern."""
    targets = config.get("target_modules")
    narrowed = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
    return tuple(targets) if isinstance(targets, list) and not narrowed else ()


def _load(file: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    if file.suffix != ".safetensors":
        return _load_pickle(file), {}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except Exception as error:  # a damaged file ends in whatever exception its bytes lead to
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"{file} can't be read as safetensors ({type(error).__name__}: {reason})") from None


def _load_pickle(file: Path) -> dict[str, torch.Tensor]:
    """Tensors only: nothing else in the file is made or run."""
    try:
        state = read_pickle(file)
    except Exception as error:  # a damaged or hostile pickle ends in whatever exception its bytes lead to
        raise ConfigError(
            f"{file} was not loaded, and nothing in it was run: it is damaged, or holds more than tensors "
            f"({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ConfigError(f"{file} must hold tensors by name; give what diffusers or peft saved")
    refuse_repeated_numbers(file, state.values())
    return {str(name): tensor for name, tensor in state.items()}


def _window_header(window: StepWindow | None) -> dict[str, str]:
    return {} if window is None else {WINDOW_KEY: json.dumps(vars(window))}


def _window_of(file: Path, header: Mapping[str, str]) -> StepWindow | None:
    if WINDOW_KEY not in header:
        return None
    try:
        window = StepWindow(**json.loads(header[WINDOW_KEY]))
        are_steps = all(type(step) is int for step in vars(window).values())
        if are_steps and 0 <= window.start < window.end <= window.of:
            return window
    except (ValueError, TypeError, RecursionError):
        pass
    raise ConfigError(f"what {file} says of the steps it acts in can't be read; save the adapter anew")


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
