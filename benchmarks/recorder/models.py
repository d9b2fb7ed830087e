"""Small pipelines with random weights, for the recorder and the tests. A change of them is a change of the record."""

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENS = 12  # of a text, ends included


def write_models(folder: Path) -> None:
    """ddpm, sd, sd_v (v-prediction) and sdxl under `folder`."""
    for name, make in {"ddpm": ddpm, "sd": stable_diffusion, "sd_v": v_prediction, "sdxl": sdxl}.items():
        torch.manual_seed(7)
        pipeline: Any = make()
        pipeline.save_pretrained(folder / name)


def ddpm() -> DDPMPipeline:
    """16 k parameters, grey 8 x 8 images, attention in the lower of two levels."""
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return DDPMPipeline(unet, DDPMScheduler(clip_sample=True))  # pyright: ignore[reportArgumentType]


def stable_diffusion(prediction_type: str = "epsilon") -> Any:
    """Latents of 4 x 8 x 8, images of 3 x 16 x 16."""
    build: Any = StableDiffusionPipeline
    return build(
        vae=tiny_vae(), text_encoder=tiny_text_encoder(), tokenizer=tiny_tokenizer(), unet=tiny_conditioned_unet(),
        scheduler=tiny_scheduler(prediction_type), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def v_prediction() -> Any:
    """As Stable Diffusion 2."""
    return stable_diffusion("v_prediction")


def sdxl(prediction_type: str = "epsilon", *, force_upcast: bool = True) -> Any:
    """Two text encoders, embeddings of the image's size, a VAE that is to be upcast."""
    unet = tiny_conditioned_unet(
        cross_attention_dim=32, use_linear_projection=True, transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    build: Any = StableDiffusionXLPipeline
    return build(
        vae=tiny_vae(scaling_factor=0.13025, force_upcast=force_upcast), unet=unet, text_encoder=tiny_text_encoder(),
        text_encoder_2=tiny_text_encoder(projection=True), tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer(),
        scheduler=tiny_scheduler(prediction_type), add_watermarker=False,
    )  # fmt: skip


def tiny_tokenizer() -> CLIPTokenizer:
    """One token a letter or digit, inside a word or at its end."""
    letters = string.ascii_lowercase + string.digits
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=TOKENS)


def tiny_text_encoder(*, projection: bool = False) -> Any:
    """Three layers, sixteen channels."""
    vocabulary = tiny_tokenizer().get_vocab()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=TOKENS, projection_dim=16, bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"], pad_token_id=vocabulary["<|endoftext|>"],
        initializer_factor=3.0,  # else all texts have nearly the same embedding
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def tiny_vae(**config: Any) -> Any:
    """Latents of 4 x 8 x 8 for images of 3 x 16 x 16."""
    build: Any = AutoencoderKL
    return build(
        latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **config,
    ).eval()  # fmt: skip


def tiny_conditioned_unet(**config: Any) -> UNet2DConditionModel:
    """Two levels on 4 x 8 x 8 latents, cross attention in the lower one and in the middle."""
    settings: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**(settings | config)).eval()


def tiny_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """A DDIM scheduler with Stable Diffusion's noise schedule."""
    build: Any = DDIMScheduler
    return build(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip
