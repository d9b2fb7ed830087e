"""Small real models for tests."""

import dataclasses
import string
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from memdiff.models.config import AdapterConfig, SamplerConfig
from memdiff.models.ddpm import DdpmPolicy
from memdiff.models.latent_files import parts_of
from memdiff.models.options import ModelOptions
from memdiff.models.scheduler import ddim_scheduler, sampling_chain
from memdiff.models.sdxl import SdxlPolicy
from memdiff.models.stable_diffusion import StableDiffusionPolicy

CPU = torch.device("cpu")


def tiny_unet(seed: int = 0, side: int = 8) -> UNet2DModel:
    """About 60 k parameters: two levels, attention in the middle and the lower one."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=side,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def tiny_policy(
    *,
    steps: int = 5,
    eta: float = 1.0,
    dtype: torch.dtype = torch.float32,
    adapter: AdapterConfig | None = None,
    seed: int = 0,
    checkpointing: bool = False,
    clip: bool = False,
    keep_base: bool = False,
    side: int = 8,
    device: torch.device = CPU,
    **sampler: Any,
) -> DdpmPolicy:
    """A DDPM with the linear schedule on the CPU."""
    scheduler = ddim_scheduler(DDPMScheduler(clip_sample=clip))
    options = SamplerConfig.model_validate({"steps": steps, "eta": eta, **sampler})
    schedule = sampling_chain(scheduler, options)
    how = "blocks" if checkpointing else "none"
    model_options = ModelOptions(dtype, adapter, activation_checkpointing=how, keep_base=keep_base)
    return DdpmPolicy(tiny_unet(seed, side), scheduler, schedule, model_options, device=device)


TOKENS = 12  # of a text, ends included


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


def tiny_vae(**config: Any) -> AutoencoderKL:
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
    """Stable Diffusion's."""
    build: Any = DDIMScheduler
    return build(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip


def tiny_stable_diffusion_pipeline(*, seed: int = 0, prediction_type: str = "epsilon") -> Any:
    """A whole StableDiffusionPipeline with random weights, without a safety checker."""
    torch.manual_seed(seed)
    build: Any = StableDiffusionPipeline
    return build(
        vae=tiny_vae(), text_encoder=tiny_text_encoder(), tokenizer=tiny_tokenizer(), unet=tiny_conditioned_unet(),
        scheduler=tiny_scheduler(prediction_type), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def tiny_sdxl_pipeline(*, seed: int = 0, prediction_type: str = "epsilon", force_upcast: bool = True) -> Any:
    """A whole StableDiffusionXLPipeline with random weights."""
    torch.manual_seed(seed)
    unet = tiny_conditioned_unet(
        cross_attention_dim=32, use_linear_projection=True, transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    build: Any = StableDiffusionXLPipeline
    return build(
        vae=tiny_vae(scaling_factor=0.13025, force_upcast=force_upcast), unet=unet,
        text_encoder=tiny_text_encoder(), text_encoder_2=tiny_text_encoder(projection=True),
        tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer(), scheduler=tiny_scheduler(prediction_type),
        add_watermarker=False,
    )  # fmt: skip


def latent_policy(kind: Any, parts: Any, sampler: SamplerConfig, *, device: torch.device = CPU, **options: Any) -> Any:
    """A policy of this kind; `options` are ModelOptions' fields and what the policy takes besides."""
    fields = {field.name for field in dataclasses.fields(ModelOptions)}
    model_options = ModelOptions(**{name: value for name, value in options.items() if name in fields})
    others = {name: value for name, value in options.items() if name not in fields}
    return kind(parts, sampler, model_options, device=device, **others)


def tiny_stable_diffusion(
    *,
    steps: int = 4,
    eta: float = 1.0,
    guidance: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    seed: int = 0,
    prediction_type: str = "epsilon",
    sampler: dict[str, Any] | None = None,
    **options: Any,
) -> StableDiffusionPolicy:
    """A policy around `tiny_stable_diffusion_pipeline`; `options` are ModelOptions' and LatentPolicy's.

    Encode prompts before use.
    """
    pipeline = tiny_stable_diffusion_pipeline(seed=seed, prediction_type=prediction_type)
    settings = SamplerConfig(steps=steps, eta=eta, guidance=guidance, **(sampler or {}))
    return latent_policy(StableDiffusionPolicy, parts_of(pipeline), settings, device=device, dtype=dtype, **options)


def tiny_sdxl(
    *,
    steps: int = 4,
    eta: float = 1.0,
    guidance: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    seed: int = 0,
    prediction_type: str = "epsilon",
    sampler: dict[str, Any] | None = None,
    **options: Any,
) -> SdxlPolicy:
    """A policy around `tiny_sdxl_pipeline`; as `tiny_stable_diffusion`."""
    pipeline = tiny_sdxl_pipeline(seed=seed, prediction_type=prediction_type)
    settings = SamplerConfig(steps=steps, eta=eta, guidance=guidance, **(sampler or {}))
    return latent_policy(SdxlPolicy, parts_of(pipeline), settings, device=device, dtype=dtype, **options)
