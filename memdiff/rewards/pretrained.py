"""What the rewards on transformers' networks share: configs, weights, tokenizers, precision, recomputation.

Weights don't go through transformers' `from_pretrained`: files are found and read by `weights.py`, assigned strictly,
and no code that comes with a model is run.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTokenizer, PreTrainedConfig

from memdiff.errors import ConfigError
from memdiff.models.config import Precision
from memdiff.models.precision import DTYPES, resolve_precision
from memdiff.rewards.weights import find_weights
from memdiff.runtime.half_precision import call_network
from memdiff.runtime.placement import cast_and_place
from memdiff.runtime.small_files import read_small_file

MOST_CONFIG_BYTES = 10**7

Config = TypeVar("Config", bound=PreTrainedConfig)


def network_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """auto is fp16 on a CUDA device, fp32 on a CPU.

    A CPU with an index is the GPU of a plan (memdiff/planner/fake_tensors.py), where `auto` chooses as on a real one.
    """
    planned = device.type == "cpu" and device.index is not None
    return DTYPES[resolve_precision(precision, torch.device("cuda") if planned else device)]


def run_network(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`network(x)`; in half precision cast there and back to fp32, its gradients scaled by the piece it belongs to."""
    if dtype in (torch.float16, torch.bfloat16):
        return call_network(network, x, dtype)
    return network(x.to(dtype))


class Recomputed(torch.nn.Module):
    """A layer that keeps only its input for the backward. transformers does so in training mode alone, and these
    networks are in evaluation mode."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own."""
        if not torch.is_grad_enabled():
            return self.layer(*args, **kwargs)
        return checkpoint(self.layer, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def checkpoint_layers(layers: torch.nn.ModuleList) -> None:
    """Makes every layer of the list a `Recomputed` one, in place."""
    for index, layer in enumerate(layers):
        layers[index] = Recomputed(layer)


def read_config(source: str, kinds: Mapping[str, type[Config]], *, revision: str | None) -> Config:
    """The config of a model folder or hub id, of the class that `kinds` has for its `model_type`.

    Raises ConfigError in one line where there is none, it is damaged, or of another type.
    """
    path = find_weights(source, "config.json", revision)
    try:
        values = json.loads(read_small_file(path, what="the config", most_bytes=MOST_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a JSON file ({type(error).__name__}); fetch it again") from None
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(model_type, str) or model_type not in kinds:
        raise ConfigError(f"{source} holds a model of type {model_type!r:.80}, and {' or '.join(kinds)} is needed")
    try:
        return kinds[model_type].from_dict(values)
    except (TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        raise ConfigError(f"{path} is not a config of type {model_type} ({_one_line(error)})") from None


def find_model(source: str, *, revision: str | None) -> Path:
    """A folder's or hub id's `model.safetensors`, else its `pytorch_model.bin`. Raises ConfigError naming the first."""
    try:
        return find_weights(source, "model.safetensors", revision)
    except ConfigError as missing:
        try:
            return find_weights(source, "pytorch_model.bin", revision)
        except ConfigError:
            raise missing from None


def has_tokenizer(source: str) -> bool:
    """Whether a folder holds a tokenizer; False for a hub id, which isn't asked."""
    folder = Path(source)
    return (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()


def load_tokenizer(source: str, *, revision: str | None = None) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer from `tokenizer.json`, or from `vocab.json` and `merges.txt`. Raises ConfigError."""
    try:
        folder = find_weights(source, "tokenizer.json", revision).parent
    except ConfigError:
        find_weights(source, "merges.txt", revision)
        folder = find_weights(source, "vocab.json", revision).parent
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the Rust reader raises bare Exception for a damaged file
        raise ConfigError(f"{folder} holds no whole CLIP tokenizer ({_one_line(error)}); fetch it again") from None
    return tokenizer


def without_buffers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by name, less the position indices that older checkpoints hold and current modules compute."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith((".position_ids", "box_bias"))}


def fill_positions(module: torch.nn.Module) -> None:
    """Real position indices for a module built on the meta device: they belong to no checkpoint."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name == "position_ids":
                part.register_buffer(name, torch.arange(buffer.shape[-1]).expand(1, -1), persistent=False)


def freeze(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Evaluation mode, no parameter gradients, on its device in its precision."""
    cast_and_place(module.requires_grad_(False).eval(), dtype, device)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
