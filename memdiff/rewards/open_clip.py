"""open_clip's CLIP checkpoints as transformers' CLIP: config and keys.

Read in open_clip 2.x, `transformer.py` and `model.py` (class CLIP). Two differences are more than names: open_clip
fuses query, key and value into one `in_proj`, and its projections multiply from the right, so they are transposed here.
"""

from collections.abc import Mapping

import torch
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from memdiff.errors import ConfigError

VISION_HEAD_WIDTH = 80  # ViT-H-14: 1280 / 16; not written in a checkpoint
TEXT_HEAD_WIDTH = 64

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}


def convert_keys(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under CLIPModel's names. Unknown names are kept, for the strict assignment to name them."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name in _NAMES:
            converted[_NAMES[name]] = tensor
        elif name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            converted.update(_convert_block(name, tensor))
    return converted


def _convert_block(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    for prefix, target in _TOWERS.items():
        if not name.startswith(prefix):
            continue
        index, _, inside = name.removeprefix(prefix).partition(".")
        if inside in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = inside.removeprefix("attn.in_proj_")
            return {
                f"{target}{index}.self_attn.{letter}_proj.{kind}": part
                for letter, part in zip("qkv", tensor.chunk(3), strict=False)
            }
        module, _, kind = inside.rpartition(".")
        if module in _BLOCK:
            return {f"{target}{index}.{_BLOCK[module]}.{kind}": tensor}
    return {name: tensor}


def config_of(tensors: Mapping[str, torch.Tensor], source: str) -> CLIPConfig:
    """The architecture, read off the shapes; gelu (not quick_gelu) and eps 1e-5, as ViT-H-14 has them.

    Raises ConfigError in one line where `tensors` are not open_clip's, or of another head width than ViT-H-14's.
    """
    try:
        patches, vision_width = tensors["visual.positional_embedding"].shape
        vocabulary = tensors["token_embedding.weight"].shape[0]
        patch = tensors["visual.conv1.weight"].shape[-1]
        context, text_width = tensors["positional_embedding"].shape
        text_config = CLIPTextConfig(
            vocab_size=vocabulary,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,  # open_clip takes the embedding where the largest id stands
            max_position_embeddings=context,
            projection_dim=tensors["text_projection"].shape[1],
            **_tower(tensors, "transformer.resblocks.", text_width, TEXT_HEAD_WIDTH, source),
        )
        vision_config = CLIPVisionConfig(
            image_size=round((patches - 1) ** 0.5) * patch,
            patch_size=patch,
            projection_dim=tensors["visual.proj"].shape[1],
            **_tower(tensors, "visual.transformer.resblocks.", vision_width, VISION_HEAD_WIDTH, source),
        )
    except (KeyError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{source} is not an open_clip ViT-H-14 checkpoint ({type(error).__name__}: {reason})"
        ) from None
    # Plain dictionaries: that is what the class's own config.json round trip gives it.
    return CLIPConfig(
        text_config=text_config.to_dict(),
        vision_config=vision_config.to_dict(),
        projection_dim=vision_config.projection_dim,
    )


def _tower(tensors: Mapping[str, torch.Tensor], prefix: str, width: int, head_width: int, source: str) -> dict:
    if width % head_width:
        raise ConfigError(
            f"{source} is not an open_clip ViT-H-14 checkpoint: width {width} is not a multiple of its head width "
            f"{head_width}"
        )
    blocks = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return {
        "hidden_size": width,
        "intermediate_size": tensors[f"{prefix}0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // head_width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
