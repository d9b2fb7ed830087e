"""Written-down configurations of public models, so that tests and plans need no download.

Written down without the hub at hand and not compared with its config.json key by key: what is checked, in the tests,
is that the parameter counts are the public ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CELEBAHQ_256: Mapping[str, Any] = {
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "act_fn": "silu",
    "attention_head_dim": None,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
}
"""google/ddpm-celebahq-256: 113,673,219 parameters."""

CIFAR10_32: Mapping[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "act_fn": "silu",
    "attention_head_dim": None,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
}
"""google/ddpm-cifar10-32: 35,746,307 parameters."""

CELEBA_64: Mapping[str, Any] = {
    **CIFAR10_32,
    "sample_size": 64,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "block_out_channels": (128, 256, 256, 256, 512),
}
"""DDIM's CelebA at 64 x 64 (Song et al. 2021, their code): 78,700,803 parameters, published as 78.7 million."""

DDPM_SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "variance_type": "fixed_small",
    "clip_sample": True,
}
"""Of all three."""


@dataclass(frozen=True)
class LatentArchitecture:
    """Configs of a text-to-image pipeline's networks: the constructors' arguments."""

    unet: Mapping[str, Any]  # UNet2DConditionModel
    vae: Mapping[str, Any]  # AutoencoderKL
    text_encoders: tuple[Mapping[str, Any], ...]  # CLIPTextConfig; the second of two has a projection
    scheduler: Mapping[str, Any]  # DDIMScheduler
    zero_negative: bool  # without a negative prompt its embedding is zero


CLIP_L_TEXT: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 768,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
"""Text encoder of openai/clip-vit-large-patch14: 123,060,480 parameters."""

OPEN_CLIP_BIGG_TEXT: Mapping[str, Any] = {
    **CLIP_L_TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
"""Of laion/CLIP-ViT-bigG-14, with its projection: 694,659,840 parameters."""

_KL_F8_VAE: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
}

TINY_VAE: Mapping[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "encoder_block_out_channels": (64, 64, 64, 64),
    "decoder_block_out_channels": (64, 64, 64, 64),
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
    "scaling_factor": 1.0,
}
"""TAESD's, for Stable Diffusion and for SDXL: 2,445,063 parameters, of which the decoder has half."""
TINY_VAES = ("madebyollin/taesd", "madebyollin/taesdxl")

LATENT_SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Of Stable Diffusion 1.x and of SDXL, as DDIM."""

STABLE_DIFFUSION_1 = LatentArchitecture(
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,  # the number of heads, by diffusers' old naming
    },
    vae={**_KL_F8_VAE, "sample_size": 512, "scaling_factor": 0.18215},
    text_encoders=(CLIP_L_TEXT,),
    scheduler=LATENT_SCHEDULER,
    zero_negative=False,
)
"""Stable Diffusion 1.4 and 1.5, 512 x 512: UNet 859,520,964 parameters, VAE 83,653,863."""

SDXL_BASE = LatentArchitecture(
    unet={
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
    vae={**_KL_F8_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoders=(CLIP_L_TEXT, OPEN_CLIP_BIGG_TEXT),
    scheduler=LATENT_SCHEDULER,
    zero_negative=True,
)
"""stabilityai/stable-diffusion-xl-base-1.0, 1024 x 1024: UNet 2,567,463,684 parameters, VAE 83,653,863."""

DDPM_SCHEDULER_AS_DDIM = {key: value for key, value in DDPM_SCHEDULER.items() if key != "variance_type"}
DDPMS: Mapping[str, Mapping[str, Any]] = {
    "google/ddpm-celebahq-256": CELEBAHQ_256,
    "google/ddpm-cifar10-32": CIFAR10_32,
    "ddim-celeba64": CELEBA_64,  # no hub id: the folder that a recipe names
}
LATENTS: Mapping[str, LatentArchitecture] = {
    "CompVis/stable-diffusion-v1-4": STABLE_DIFFUSION_1,
    "runwayml/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
    "stabilityai/stable-diffusion-xl-base-1.0": SDXL_BASE,
}
