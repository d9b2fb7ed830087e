"""What the model card says, measured on the weights as they lie on disk."""

# Shapes: N images, M reference images, H W pixels (16 x 16), R C rows and columns of a grid.

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from einops import rearrange
from PIL import Image
from torch import Tensor

from benchmarks.embedded_models.training import Settings
from memdiff.digits.classifiers import DigitClassifier
from memdiff.digits.judge import judge_images
from memdiff.digits.scans import SIZE, augment, is_minority, real_digits, thinned_mix

SAMPLE_SEED = 2026
STEPS = 50
ETA = 1.0


def load_ddpm(folder: Path, *, clip_sample: bool | None = None) -> tuple[UNet2DModel, DDIMScheduler]:
    """The pipeline folder as plain diffusers loads it, with a DDIM scheduler made from its own.

    `clip_sample` None keeps what the folder says.
    """
    pipeline = DDPMPipeline.from_pretrained(folder)
    changes = {} if clip_sample is None else {"clip_sample": clip_sample}
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **changes)
    assert isinstance(scheduler, DDIMScheduler), "from_config returns a pair only when asked for unused keys"
    return pipeline.unet, scheduler


@torch.no_grad()
def draw_samples(
    unet: UNet2DModel, scheduler: DDIMScheduler, num_images: int, *, seed: int = SAMPLE_SEED, batch: int = 200
) -> Tensor:
    """DDIM, 50 steps, eta 1, from one seeded CPU generator. Returns: images_N1HW in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(STEPS)
    parts = []
    for start in range(0, num_images, batch):
        x_N1HW = torch.randn(min(batch, num_images - start), 1, SIZE, SIZE, generator=generator)
        for timestep in scheduler.timesteps.tolist():
            noise_N1HW = unet(x_N1HW, timestep).sample
            stepped = scheduler.step(noise_N1HW, timestep, x_N1HW, eta=ETA, generator=generator, return_dict=False)
            x_N1HW = stepped[0]
        parts.append(((x_N1HW + 1.0) / 2.0).clamp(0.0, 1.0))
    return torch.cat(parts)


def nearest_distances(images_N1HW: Tensor, references_M1HW: Tensor) -> Tensor:
    """Root-mean-square pixel difference of each image to the most similar reference. Returns: N, in 0..1."""
    distances_NM = torch.cdist(images_N1HW.flatten(1), references_M1HW.flatten(1))
    return distances_NM.min(dim=1).values / SIZE


def memorisation(samples_N1HW: Tensor, judge: DigitClassifier, trained: Settings, copies: int = 30) -> dict[str, Any]:
    """Distances of samples, and of held-out digits, to the training mix with `copies` augmented versions of each image.

    A model that copies has samples much nearer than held-out digits. By group, since the thinned group is
    sparser; a group without samples is left out.
    """
    train_M1HW, _ = thinned_mix(trained.seed)
    generator = torch.Generator().manual_seed(trained.seed)
    versions = [augment(train_M1HW, generator, strength=trained.augmentation) for _ in range(copies)]
    references_M1HW = torch.cat([train_M1HW, *versions])
    held_out_N1HW, labels_N = real_digits("held_out")
    summary: dict[str, Any] = {"references": len(references_M1HW)}
    for name, images_N1HW, digits_N in (
        ("samples", samples_N1HW, judge(samples_N1HW).argmax(dim=1)),
        ("held_out", held_out_N1HW, labels_N),
    ):
        distances_N = nearest_distances(images_N1HW, references_M1HW)
        for group, in_group_N in (("0-4", ~is_minority(digits_N)), ("5-9", is_minority(digits_N))):
            if not in_group_N.any():
                continue
            lowest, median = torch.quantile(distances_N[in_group_N], torch.tensor([0.01, 0.5])).tolist()
            summary[f"{name} {group}"] = {"median": round(median, 4), "percentile_1": round(lowest, 4)}
    return summary


def accuracy(classifier: DigitClassifier) -> float:
    """The share of the 360 held-out digits named rightly."""
    images_N1HW, labels_N = real_digits("held_out")
    return float((classifier(images_N1HW).argmax(dim=1) == labels_N).double().mean())


def clipping(folder: Path, judge: DigitClassifier, num_images: int) -> dict[str, Any]:
    """Both settings of `clip_sample`, judged on the same noise."""
    return {
        str(clip).lower(): asdict(judge_images(draw_samples(*load_ddpm(folder, clip_sample=clip), num_images), judge))
        for clip in (True, False)
    }


def grid_image(images_N1HW: Tensor, columns: int, scale: int = 2) -> Image.Image:
    """Ink on paper, black on white, `scale` pixels a pixel. N must be a multiple of `columns`."""
    grid_HW = rearrange(1.0 - images_N1HW, "(r c) 1 h w -> (r h) (c w)", c=columns)
    picture = Image.fromarray((255.0 * grid_HW).round().to(torch.uint8).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
