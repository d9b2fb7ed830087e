"""LoRA files as other programs write them, from factors by the layers' names in the UNet."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft.tuners.lora import LoraLayer

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]  # A, B and alpha of a layer
Tensors = dict[str, torch.Tensor]


def factors_for(unet: torch.nn.Module, targets: tuple[str, ...], *, ranks: Any, alphas: Any, seed: int = 0) -> Factors:
    """Random ones for every layer that ends in one of `targets`; ranks and alphas are taken in turn."""
    generator, factors = torch.Generator().manual_seed(seed), {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and name.endswith(targets):
            rank, out, inner = ranks[len(factors) % len(ranks)], len(module.weight), module.weight.shape[1:]
            a = torch.randn(rank, *inner, generator=generator) * 0.2
            b = torch.randn(out, rank, *(1,) * (len(inner) - 1), generator=generator) * 0.2
            factors[name] = (a, b, alphas[len(factors) % len(alphas)])
    return factors


def dense(factors: Factors) -> Tensors:
    """dW = alpha / rank B A of every layer, fp64."""
    return {
        name: alpha / len(a) * torch.tensordot(b.double().flatten(1), a.double(), dims=1)
        for name, (a, b, alpha) in factors.items()
    }


def in_network(unet: torch.nn.Module) -> Tensors:
    """dW of every adapted layer as peft works it out, summed over the active adapters, fp64."""
    deltas = {}
    layers: Any = [(name, layer) for name, layer in unet.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in layers:
        if layer.active_adapters:
            deltas[name] = sum(layer.get_delta_weight(adapter).detach().double() for adapter in layer.active_adapters)
    return deltas


def peft_names(factors: Factors, prefix: str = "unet.") -> Tensors:
    """`unet.LAYER.lora_A.weight`, alpha folded into B."""
    state = {}
    for name, (a, b, alpha) in factors.items():
        state[f"{prefix}{name}.lora_A.weight"] = a
        state[f"{prefix}{name}.lora_B.weight"] = b * (alpha / len(a))
    return state


def training_script(factors: Factors, prefix: str = "unet.") -> Tensors:
    """`unet.LAYER.lora.down.weight`: diffusers' and TRL's scripts."""
    sides = (("lora_A", "lora.down"), ("lora_B", "lora.up"))
    return {name.replace(*sides[".lora_B." in name]): tensor for name, tensor in peft_names(factors, prefix).items()}


def attention_alone(factors: Factors) -> Tensors:
    """Old names for attention and new ones for other layers: what diffusers' own converter makes of new ones."""
    return dict(convert_state_dict_to_diffusers(peft_names(factors)))


def processors(factors: Factors, prefix: str = "unet.") -> Tensors:
    """`unet.BLOCK.attn1.processor.to_q_lora.down.weight`: diffusers before peft; attention only."""
    state = {}
    for name, tensor in peft_names(factors, prefix).items():
        block, _, rest = name.rpartition(".to_")
        layer, _, side = rest.partition(".lora_")
        which = layer.removesuffix(".0")
        state[f"{block}.processor.to_{which}_lora.{'down' if side[0] == 'A' else 'up'}.weight"] = tensor
    return state


def kohya(factors: Factors, config: Any = None) -> Tensors:
    """kohya's names with an alpha a layer; with a UNet's config those of SDXL's first authors (`input_blocks`)."""
    state = {}
    for name, (a, b, alpha) in factors.items():
        key = "lora_unet_" + (name if config is None else authors_name(name, config)).replace(".", "_")
        state |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(alpha)}
    return state


def authors_name(name: str, config: Any) -> str:
    """`down_blocks.1.attentions.0.X` as `input_blocks.N.1.X`: blocks are counted through, `layers_per_block` each."""
    side, *rest = name.split(".")
    each, inner = config.layers_per_block + 1, {"resnets": "0", "attentions": "1", "upsamplers": "2"}
    if side == "mid_block":
        return ".".join(
            ["middle_block", {"attentions0": "1", "resnets0": "0", "resnets1": "2"}[rest[0] + rest[1]], *rest[2:]]
        )
    block, kind, number, *layer = rest
    if side == "down_blocks":
        return ".".join(["input_blocks", str(int(block) * each + int(number) + 1), inner[kind], *layer])
    return ".".join(["output_blocks", str(int(block) * each + int(number)), inner[kind], *layer])
