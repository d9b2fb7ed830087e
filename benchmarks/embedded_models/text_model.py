"""The parts of the embedded text-to-image model, untrained, and the Stable Diffusion folder they make together."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.embedded_models.text_data import PICTURE_SIZE
from benchmarks.embedded_models.text_prompts import LETTERS, WORDS

MAX_TOKENS = 16  # with the two that open and close a prompt
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
BEGIN, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
WORD_END = "</w>"


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in order, until every word is one token. Sennrich et al. 2016, algorithm 1, ended by </w>.

    Each word counts once; of equally frequent pairs the first in the alphabet is merged. Not the tokenizers library's
    trainer, whose ties fall by the order of a hash table that differs between processes.
    """
    pieces = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in pieces for pair in pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with each occurrence of the pair, from the left, made one piece."""
    result: list[str] = []
    for piece in pieces:
        # A piece that a merge has just made is longer than the pair's first, so it can't be merged twice.
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def new_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoding, learned on the model's words until each of them is one token.

    Other words fall apart into pieces and letters, as with CLIP; what has no letter a-z or figure becomes the unknown
    token.
    """
    merges: Any = learn_merges(WORDS)  # Any: transformers types it as lines
    figures = [word for word in WORDS if word.isdigit()]
    tokens = [BEGIN, END, UNKNOWN, *LETTERS, *(letter + WORD_END for letter in [*LETTERS, *figures])]
    tokens += [first + second for first, second in merges]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_TOKENS,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's causal text transformer with two layers."""
    vocabulary = tokenizer.get_vocab()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=vocabulary[BEGIN],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )
    )


def new_vae() -> AutoencoderKL:
    """32 x 32 x 3 to 8 x 8 x 4 and back. Rombach et al. 2022 (latent diffusion), the KL kind."""
    options: dict[str, Any] = {  # Any: diffusers types them as tuples of one
        "sample_size": PICTURE_SIZE,
        "latent_channels": LATENT_CHANNELS,
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    return AutoencoderKL(**options)


def new_unet() -> UNet2DConditionModel:
    """The latent denoiser: cross-attention at 8 x 8 and in the middle."""
    return UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's: T = 1000, scaled-linear betas 0.00085 to 0.012, leading timesteps from 1, nothing clipped."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def assemble(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, vae: AutoencoderKL, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The pipeline, without a safety checker: it draws digits."""
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler: Any = new_scheduler()  # Any: diffusers types it as an enumeration of schedulers
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, **absent
    )


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the folder in fp16, replacing what lies there; a reader sees the old folder or the new one, whole.

    The networks of `pipeline` are in fp16 afterwards.
    """
    fresh, former = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for leftover in (fresh, former):
        rmtree(leftover, ignore_errors=True)
    for network in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        network.half()
    pipeline.save_pretrained(fresh)
    # transformers loads in the dtype that the file names, diffusers in float32: their parts must agree.
    for part, changes in {"text_encoder": {"dtype": "float32"}, "unet": {}, "vae": {}}.items():
        config_file = fresh / part / "config.json"
        config = json.loads(config_file.read_text(encoding="utf-8")) | changes
        config.pop("_name_or_path", None)  # the folder in which it happened to lie
        config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in fresh.rglob("*"):
        # safetensors makes files that only their owner can read.
        path.chmod(0o755 if path.is_dir() else 0o644)
    if folder.exists():
        folder.rename(former)
    fresh.rename(folder)
    rmtree(former, ignore_errors=True)
