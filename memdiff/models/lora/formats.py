"""LoRA files of other programs: their key names as the network's own, by diffusers' converters, at the same dW.

kohya's files (`lora_unet_down_blocks_0_...lora_down.weight` with an `alpha` a layer; SDXL also by its first authors'
names, `input_blocks`), what diffusers' training scripts wrote before peft (`to_q.lora.down.weight`), and what its
attention processors wrote before that (`processor.to_q_lora.down.weight`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

from memdiff.errors import ConfigError

Tensors = dict[str, torch.Tensor]

KOHYA = "lora_unet_"
TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.", "lora_te_", "lora_te1_", "lora_te2_")
NOT_LORA = {  # parts of key names
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", ".hada_": "LoHa", ".lokr_": "LoKr", ".oft_": "OFT",
    "lora_mid.": "LoCon with a core tensor", ".diff": "whole weight differences", "lora_controlnet": "a control LoRA",
}  # fmt: skip


def is_kohya(names: Iterable[str]) -> bool:
    """Whether these are kohya's key names of a UNet."""
    return any(name.startswith(KOHYA) for name in names)


def to_network_names(file: Path, state: Tensors, network_config: Any = None) -> Tensors:
    """Tensors named `LAYER.lora_A.weight` and `LAYER.lora_B.weight`, with wrappers' prefixes where there were any.

    kohya's alphas are multiplied into B, so that nothing is left beside the two. `network_config` is the UNet's, which
    `input_blocks` names are counted by. Raises ConfigError naming what is no LoRA of a UNet.
    """
    _refuse_others(file, state)
    try:
        if is_kohya(state):
            # A dictionary goes in and comes out: nothing is read or fetched here.
            state, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(  # pyright: ignore[reportAssignmentType]
                _with_alpha_folded(file, state), unet_config=network_config
            )
        # Files may mix old and new names, layer by layer: the new ones stay as they are.
        state = convert_unet_state_dict_to_peft(state)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"diffusers can't translate the key names of {file} ({type(error).__name__}: {reason}); it takes LoRA of "
            "Stable Diffusion and SDXL UNets"
        ) from None
    return state


def to_kohya_names(state: Mapping[str, torch.Tensor]) -> Tensors:
    """`unet.LAYER.lora_A.weight` and its B as kohya, ComfyUI and A1111 name them, with an alpha equal to its rank."""
    named = convert_state_dict_to_kohya(dict(state))
    return {name: tensor.float() if name.endswith(".alpha") else tensor for name, tensor in named.items()}


def _refuse_others(file: Path, names: Iterable[str]) -> None:
    for name in names:
        if name.startswith(TEXT_ENCODERS):
            raise ConfigError(
                f"{file} holds LoRA of a text encoder too ({name}), which memdiff does not apply: the images would not "
                "be what it was made for. Give one of the UNet alone (kohya: --network_train_unet_only)"
            )
        for part, kind in NOT_LORA.items():
            if part in name:
                raise ConfigError(f"{file} holds {kind} ({name}), which memdiff does not apply; it takes plain LoRA")


def _with_alpha_folded(file: Path, state: Tensors) -> Tensors:
    """alpha / rank multiplied into every `lora_up`: a layer without an alpha has one equal to its rank."""
    folded = {name: tensor for name, tensor in state.items() if not name.endswith(".alpha")}
    for name, alpha in state.items():
        if not name.endswith(".alpha"):
            continue
        layer = name.removesuffix(".alpha")
        down, up = f"{layer}.lora_down.weight", f"{layer}.lora_up.weight"
        if down not in folded or up not in folded or alpha.numel() != 1 or not len(folded[down]):
            raise ConfigError(f"{file} is damaged: {name} does not belong to one lora_down and one lora_up")
        folded[up] = folded[up].float() * (float(alpha) / folded[down].shape[0])
    return folded
