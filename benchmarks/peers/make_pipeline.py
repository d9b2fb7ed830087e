"""Writes the pipeline that all peers train: `python -m benchmarks.peers.make_pipeline FOLDER [--shape sd15]`.

A StableDiffusionPipeline with seeded random weights, in the shapes of Stable Diffusion 1.5 at a hundredth of its size:
UNet 4.4 M parameters, latents 4 x 16 x 16, a VAE that makes them 64 x 64 pixels, a CLIP text encoder. Random weights
cost the same time and memory as trained ones. `--shape sd15` is Stable Diffusion 1.5 itself, UNet and VAE, in fp16 (2
GB), for the suite `gpu`; its text encoder is the small one's with 768 channels.
"""

import argparse
import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from memdiff.models.architectures import STABLE_DIFFUSION_1

TEXT_CHANNELS = 64
TOKENS = 77


def write_tokenizer(folder: Path) -> int:
    """CLIP's files with one token a letter; returns the size of the vocabulary."""
    letters = string.ascii_lowercase + string.digits
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


def make_pipeline(folder: Path, *, seed: int = 0, shape: str = "small") -> None:
    """Writes the pipeline's folder."""
    torch.manual_seed(seed)
    large, channels = shape == "sd15", 768 if shape == "sd15" else TEXT_CHANNELS
    vocabulary = write_tokenizer(folder / "tokenizer")
    # diffusers' decorators hide the constructors' arguments from a type checker.
    unet_class: Any = UNet2DConditionModel
    vae_class: Any = AutoencoderKL
    scheduler_class: Any = DDIMScheduler
    pipeline: Any = StableDiffusionPipeline(
        unet=unet_class(**STABLE_DIFFUSION_1.unet) if large else unet_class(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=2,
            norm_num_groups=16, attention_head_dim=4, cross_attention_dim=TEXT_CHANNELS,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        vae=vae_class.from_config(dict(STABLE_DIFFUSION_1.vae)) if large else vae_class(
            latent_channels=4, block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=16, sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary, hidden_size=channels, intermediate_size=4 * channels,
                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=TOKENS,
                bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
            )
        ),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")),
        scheduler=scheduler_class(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    if large:
        pipeline.to(torch.float16)
    pipeline.save_pretrained(str(folder), safe_serialization=True)


def main() -> None:
    """Takes the folder from the command line and writes the pipeline into it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=("small", "sd15"), default="small")
    options = parser.parse_args()
    make_pipeline(options.folder, shape=options.shape)


if __name__ == "__main__":
    main()
