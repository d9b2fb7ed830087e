"""What the text model's card says, measured through plain diffusers on the folder as it lies on disk."""

# Shapes: N images, M reference images, C channels (3), H W pixels (32 x 32), K the ten digits.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.embedded_models.text_data import PICTURE_SIZE, styled
from benchmarks.embedded_models.text_prompts import STYLES, Style, prompt_for
from benchmarks.embedded_models.text_training import decode, posterior
from benchmarks.embedded_models.training import Settings
from memdiff.digits.classifiers import NUM_DIGITS, DigitClassifier
from memdiff.digits.judge import RECOGNISED_CONFIDENCE
from memdiff.digits.scans import augment, real_digits

SAMPLE_SEED = 2027
GUIDANCES = (1.0, 3.0, 5.0, 7.5)
STEPS = (50, 20)

FREE_PROMPTS = (
    ("please draw me a really fat zero", 0),
    ("a photo of the number one on white paper", 1),
    ("2, handwritten", 2),
    ("my old and neat three", 3),
    ("a beautiful slender four in black ink", 4),
    ("the figure 5", 5),
    ("just a heavy digit six", 6),
    ("a wonderful seven", 7),
    ("sketch of an ordinary 8 by hand", 8),
    ("NINE!", 9),
)
"""Ten prompts as people may write them, with words and signs that the model never heard among them."""


@dataclass(frozen=True)
class Drawing:
    """One way to sample."""

    guidance: float
    steps: int = 50
    eta: float = 0.0
    seed: int = SAMPLE_SEED


def load_text(folder: Path) -> StableDiffusionPipeline:
    """The folder as plain diffusers loads it, silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def draw_pictures(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], drawing: Drawing, batch: int = 40
) -> Tensor:
    """One picture a prompt, DDIM, all noise from one seeded CPU generator. Returns: images_N3HW in [0, 1]."""
    generator = torch.Generator().manual_seed(drawing.seed)
    parts = []
    for start in range(0, len(prompts), batch):
        drawn: Any = pipeline(
            list(prompts[start : start + batch]),
            guidance_scale=drawing.guidance,
            num_inference_steps=drawing.steps,
            eta=drawing.eta,
            generator=generator,
            output_type="pt",
        )
        parts.append(drawn.images)
    return torch.cat(parts)


def wishes(each: int, styles: Sequence[Style] = STYLES) -> tuple[list[str], Tensor, list[Style]]:
    """`each` prompts of every digit in every style, in that order. Returns: prompts, digits_N, styles."""
    wanted: list[tuple[Style, int]] = [
        (style, digit) for style in styles for digit in range(NUM_DIGITS) for _ in range(each)
    ]
    prompts = [prompt_for(digit, style) for style, digit in wanted]
    return prompts, torch.tensor([digit for _, digit in wanted]), [style for style, _ in wanted]


@torch.no_grad()
def recognition(images_NCHW: Tensor, digits_N: Tensor, judge: DigitClassifier) -> dict[str, float]:
    """The shares of images that the judge takes for the digit asked for: at all, and with confidence >= 0.8."""
    probabilities_NK = torch.cat([judge(part).softmax(dim=1) for part in images_NCHW.split(256)])
    confidence_N, seen_N = probabilities_NK.max(dim=1)
    right_N = seen_N == digits_N
    sure_N = right_N & (confidence_N >= RECOGNISED_CONFIDENCE)
    return {"named": _mean(right_N), "named_surely": _mean(sure_N)}


def _mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 4)


def by_digit(images_NCHW: Tensor, digits_N: Tensor, judge: DigitClassifier) -> dict[str, float]:
    """The share named rightly of each digit."""
    return {
        str(digit): recognition(images_NCHW[digits_N == digit], digits_N[digits_N == digit], judge)["named"]
        for digit in range(NUM_DIGITS)
    }


def ink(images_NCHW: Tensor, styles: Sequence[Style]) -> dict[str, float]:
    """The mean pixel of each style's images: 0 paper, 1 ink."""
    return {
        style: _mean(images_NCHW[torch.tensor([each == style for each in styles])])
        for style in STYLES
        if style in styles
    }


def nearest_distances(images_NCHW: Tensor, references_MCHW: Tensor) -> Tensor:
    """Root-mean-square pixel difference of each image to the most similar reference, in grey. Returns: N, in 0..1."""
    grey_NP, references_MP = (images.mean(dim=1).flatten(1) for images in (images_NCHW, references_MCHW))
    return torch.cdist(grey_NP, references_MP).min(dim=1).values / PICTURE_SIZE


def training_pictures(split: Literal["train", "held_out"], settings: Settings, copies: int) -> tuple[Tensor, Tensor]:
    """Each digit of a side in all three styles, as it is and in `copies` augmented versions.

    Returns: images_M3HW, digits_M.
    """
    images_N1HW, labels_N = real_digits(split)
    generator = torch.Generator().manual_seed(settings.seed)
    versions = [images_N1HW, *(augment(images_N1HW, generator, strength=settings.augmentation) for _ in range(copies))]
    pictures = [styled(version, style) for style in STYLES for version in versions]
    return torch.cat(pictures), labels_N.repeat(len(pictures))


def memorisation(samples_NCHW: Tensor, settings: Settings, copies: int) -> dict[str, Any]:
    """Distances of samples, and of held-out digits in the same styles, to the training pictures.

    A model that copies has samples much nearer than held-out digits.
    """
    references_MCHW, _ = training_pictures("train", settings, copies)
    held_out_NCHW, _ = training_pictures("held_out", settings, 0)
    summary: dict[str, Any] = {"references": len(references_MCHW)}
    for name, images_NCHW in (("samples", samples_NCHW), ("held_out", held_out_NCHW)):
        distances_N = nearest_distances(images_NCHW, references_MCHW)
        lowest, median = torch.quantile(distances_N, torch.tensor([0.01, 0.5])).tolist()
        summary[name] = {"median": round(median, 4), "percentile_1": round(lowest, 4)}
    return summary


@torch.no_grad()
def autoencoding(pipeline: StableDiffusionPipeline, settings: Settings) -> dict[str, float]:
    """The autoencoder on held-out pictures, unclamped.

    `rms_error` in pixels of 0..1; `latent_std` after scaling; `inside` the share of decoded values strictly within
    0..1, where a clamp lets gradients through.
    """
    pictures_NCHW, _ = training_pictures("held_out", settings, 0)
    vae = pipeline.vae
    decoded, latents = [], []
    for part in (2.0 * pictures_NCHW - 1.0).split(120):
        mode = posterior(vae, part).mode()
        latents.append(mode * vae.config["scaling_factor"])
        decoded.append((decode(vae, mode) + 1.0) / 2.0)
    decoded_NCHW = torch.cat(decoded)
    return {
        "rms_error": round(float((decoded_NCHW - pictures_NCHW).square().mean().sqrt()), 4),
        "latent_std": round(float(torch.cat(latents).std()), 4),
        "inside": _mean((decoded_NCHW > 0.0) & (decoded_NCHW < 1.0)),
    }
