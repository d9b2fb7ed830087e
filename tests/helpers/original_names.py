"""A pipeline's weights under the names of the original code, as checkpoints in one file have them.

Written from the architecture (Rombach et al. 2022; OpenCLIP's text tower), without diffusers' own translation: blocks
of a UNet are numbered through, a VAE's decoder counts its levels from the image, OpenCLIP keeps q, k and v in one.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def in_one_file(pipeline: Any) -> Tensors:
    """All of a StableDiffusionPipeline's or StableDiffusionXLPipeline's networks."""
    names = {"text_encoder": "cond_stage_model.transformer."}
    tensors = unet_tensors(pipeline.unet) | vae_tensors(pipeline.vae)
    if "text_encoder_2" in pipeline.components:
        names = {"text_encoder": "conditioner.embedders.0.transformer."}
        tensors |= open_clip_tensors(pipeline.text_encoder_2)
    return tensors | clip_tensors(pipeline.text_encoder, names["text_encoder"])


def unet_tensors(unet: Any) -> Tensors:
    """Names of a UNet2DConditionModel's tensors."""
    layers, state = unet.config["layers_per_block"], unet.state_dict()
    return {f"model.diffusion_model.{_unet_name(name, layers, state)}": tensor for name, tensor in state.items()}


def _unet_name(name: str, layers: int, state: Mapping[str, Any]) -> str:
    for ours, theirs in TOP.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    match = re.fullmatch(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name)
    assert match, name
    place, block, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        head, _, tail = rest.rpartition(".")
        rest = f"{RESNET[head]}.{tail}"
    if place == "mid_block":
        return f"middle_block.{2 * number if kind == 'resnets' else 1}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        attends = any(other.startswith(f"up_blocks.{block}.attentions.") for other in state)
        return f"output_blocks.{block * (layers + 1) + layers}.{2 if attends else 1}.{rest}"
    side, first = ("input_blocks", 1) if place == "down_blocks" else ("output_blocks", 0)
    return f"{side}.{first + block * (layers + 1) + number}.{0 if kind == 'resnets' else 1}.{rest}"


def vae_tensors(vae: Any) -> Tensors:
    """Of an AutoencoderKL: attention's linear layers are convolutions of 1 x 1 there."""
    tensors: Tensors = {}
    last = len(vae.config["block_out_channels"]) - 1
    for name, tensor in vae.state_dict().items():
        new = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", name)
        new = re.sub(r"down_blocks\.(\d+)", r"down.\1", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", new)
        for ours, theirs in (
            (".resnets.", ".block."), ("conv_shortcut", "nin_shortcut"), ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"), ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"),
            ("to_out.0", "proj_out"), ("to_", ""), ("conv_norm_out", "norm_out"),
        ):  # fmt: skip
            new = new.replace(ours, theirs)
        linear = "attentions" in name and tensor.ndim == 2
        tensors[f"first_stage_model.{new}"] = tensor[:, :, None, None] if linear else tensor
    return tensors


def clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """Of a CLIPTextModel, as transformers named it when such files were made; with its position indices."""
    state = encoder.state_dict()
    tensors = {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    positions = torch.arange(encoder.config.max_position_embeddings)[None]
    return tensors | {f"{prefix}text_model.embeddings.position_ids": positions}


def open_clip_tensors(encoder: Any, prefix: str = "conditioner.embedders.1.model.") -> Tensors:
    """Of a CLIPTextModelWithProjection, as OpenCLIP has it."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    tensors = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    tensors |= {f"ln_final.{end}": state[f"final_layer_norm.{end}"] for end in ("weight", "bias")}
    for layer in range(encoder.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for end in ("weight", "bias"):
            joined = [state[f"{ours}self_attn.{part}_proj.{end}"] for part in "qkv"]
            tensors[f"{theirs}attn.in_proj_{end}"] = torch.cat(joined)
            tensors |= {f"{theirs}{new}.{end}": state[f"{ours}{old}.{end}"] for old, new in OPEN_CLIP_LAYER.items()}
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
