"""LoRA through peft: injected into a network in place, saved as a PEFT folder, merged for export.

UNet2DModel has no PEFT mixin, so the adapter is injected with `peft.inject_adapter_in_model` (peft 0.21).
"""

from pathlib import Path
from typing import TypeVar

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from memdiff.errors import ConfigError, NumericError
from memdiff.models.config import CONVOLUTION_TARGETS, AdapterConfig

WEIGHTS_NAME = "adapter_model.safetensors"

Network = TypeVar("Network", bound=torch.nn.Module)


def inject(network: torch.nn.Module, adapter: AdapterConfig) -> None:
    """Adds trainable B A (B starts at zero) to the layers that `adapter` names; all else is frozen already.

    The random start of A is a function of the layer's own shape and torch's generator, so callers seed it.
    Raises ConfigError where a target names no layer, listing those there are.
    """
    adaptable = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    for target in _targets(adapter):
        if not any(name == target or name.endswith(f".{target}") for name in adaptable):
            endings = sorted(
                {
                    name.split(".")[-1] if not name[-1].isdigit() else ".".join(name.split(".")[-2:])
                    for name in adaptable
                }
            )
            raise ConfigError(f"adapter.targets: no layer is named {target}; there are {', '.join(endings)}")
    peft.inject_adapter_in_model(_lora_config(adapter), network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)


def save(network: torch.nn.Module, adapter: AdapterConfig, folder: Path) -> None:
    """A PEFT folder: adapter_config.json (rank, alpha, targets) and safetensors.

    Raises NumericError rather than write weights that are not finite.
    """
    state = {name: tensor.contiguous().cpu() for name, tensor in get_peft_model_state_dict(network).items()}
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise NumericError(f"the adapter is not finite in {broken[0]} and {len(broken) - 1} more; it is not saved")
    folder.mkdir(parents=True, exist_ok=True)
    _lora_config(adapter).save_pretrained(str(folder))
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def load(network: torch.nn.Module, folder: Path) -> None:
    """Injects the adapter of a PEFT folder into `network`, at the rank, alpha and targets it was saved with."""
    if not (folder / WEIGHTS_NAME).is_file():
        raise ConfigError(f"{folder} holds no {WEIGHTS_NAME}; give a folder that memdiff or peft saved")
    config = peft.LoraConfig.from_pretrained(str(folder))
    peft.inject_adapter_in_model(config, network)
    outcome = set_peft_model_state_dict(network, load_file(folder / WEIGHTS_NAME))
    if outcome.unexpected_keys:
        raise ConfigError(f"{folder} belongs to another network: it holds {outcome.unexpected_keys[0]}")


def merged(network: Network) -> Network:
    """The network with W + dW in place of every adapted layer; the LoRA layers are gone. Changes `network`."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    return network


def _targets(adapter: AdapterConfig) -> list[str]:
    return [*adapter.targets, *(CONVOLUTION_TARGETS if adapter.convolutions else ())]


def _lora_config(adapter: AdapterConfig) -> peft.LoraConfig:
    # use_rslora stays off: dW = alpha / rank * B A, as everywhere else.
    return peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha if adapter.alpha is not None else adapter.rank,  # pyright: ignore[reportArgumentType]
        target_modules=_targets(adapter),
        lora_dropout=0.0,
        bias="none",
    )
