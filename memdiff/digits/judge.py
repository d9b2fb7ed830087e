"""An outside view of digit images: `python -m memdiff.digits.judge FOLDER [--num-images 400] [--json FILE]`.

The judge is a classifier that no reward uses. It says which share of the images belongs to the group 5-9, which share
it recognises as digits at all, and how far they are from real digits *of the same mix*, so that moving the share costs
nothing and spoiling the digits does.
"""

# Shapes: N images, C channels (1 or 3), H W pixels, F features, K the ten digits.

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memdiff.digits.classifiers import NUM_DIGITS, DigitClassifier, as_digits, load_classifier
from memdiff.digits.scans import MINORITY, is_minority, real_digits
from memdiff.errors import ConfigError, MemdiffError, last_line
from memdiff.runtime.cuda_allocator import use_expandable_segments
from memdiff.runtime.image_files import GRID, images_of, open_image

RECOGNISED_CONFIDENCE = 0.8
WILSON_Z = 1.959963984540054  # two-sided 95 %
MODES = ("1", "L", "P", "RGB", "RGBA")

Array = NDArray[np.float64]
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Judgement:
    """What the judge saw. Shares lie in 0..1; `share_low`..`share_high` is the Wilson 95 % interval of the share."""

    num_images: int
    minority_share: float
    share_low: float
    share_high: float
    recognised_share: float
    frechet_distance: float


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share. Wilson 1927; unlike p +- 2 s it stays in 0..1 and is honest at 0 and 1."""
    assert 0 <= hits <= trials and trials > 0, f"0 <= hits <= trials, got {hits} of {trials}"
    share, z_squared = hits / trials, WILSON_Z**2
    centre = (share + z_squared / (2 * trials)) / (1 + z_squared / trials)
    half = WILSON_Z * sqrt(share * (1 - share) / trials + z_squared / (4 * trials**2)) / (1 + z_squared / trials)
    # At 0 and 1 the formula's exact end is 0 and 1; rounding may miss it by 1e-17.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == trials else centre + half)


def weighted_gaussian(features_NF: Array, weights_N: Array) -> tuple[Array, Array]:
    """Mean and unbiased covariance of weighted features; equal weights give the usual divisor N - 1.

    The weights must sum to 1. Returns: mean_F, covariance_FF.
    """
    mean_F = weights_N @ features_NF
    centred_NF = features_NF - mean_F
    covariance_FF = (centred_NF * weights_N[:, None]).T @ centred_NF
    return mean_F, covariance_FF / (1.0 - float(weights_N @ weights_N))


def frechet_distance(mean_a_F: Array, covariance_a_FF: Array, mean_b_F: Array, covariance_b_FF: Array) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    Dowson and Landau 1982; Heusel et al. 2017 (FID). The trace of (A B)^(1/2) is taken as that of
    (A^(1/2) B A^(1/2))^(1/2): symmetric, so its eigenvalues are real, and only rounding makes one negative.
    """
    values_F, vectors_FF = np.linalg.eigh(covariance_a_FF)
    root_a_FF = (vectors_FF * np.sqrt(values_F.clip(min=0.0))) @ vectors_FF.T
    cross_F = np.linalg.eigvalsh(root_a_FF @ covariance_b_FF @ root_a_FF).clip(min=0.0)
    offset_F = mean_a_F - mean_b_F
    total = np.trace(covariance_a_FF) + np.trace(covariance_b_FF) - 2.0 * np.sqrt(cross_F).sum()
    return max(0.0, float(offset_F @ offset_F + total))


def mix_weights(labels_N: Tensor, minority_share: float) -> Array:
    """Weights that give the group 5-9 its share, each digit within a group the same, each image of a digit the same."""
    counts_K = torch.bincount(labels_N, minlength=NUM_DIGITS)
    assert bool((counts_K > 0).all()), f"every digit must occur, got counts {counts_K.tolist()}"
    majority_digits = NUM_DIGITS - len(MINORITY)
    weight_K = torch.full((NUM_DIGITS,), (1.0 - minority_share) / majority_digits, dtype=torch.float64)
    weight_K[list(MINORITY)] = minority_share / len(MINORITY)
    return (weight_K / counts_K)[labels_N].numpy()


@torch.no_grad()
def _see(judge: DigitClassifier, images_N1HW: Tensor) -> tuple[Array, Tensor]:
    """Features_NF in float64 and probabilities_NK, 256 images at a time."""
    features_NF = torch.cat([judge.features(part) for part in images_N1HW.split(256)])
    return features_NF.double().numpy(), judge.head(features_NF).softmax(dim=1)


def judge_images(images_N1HW: Tensor, judge: DigitClassifier | None = None) -> Judgement:
    """Judge N >= 2 images in [0, 1], one or three channels, any one size; `judge` is the shipped one unless given.

    The distance is taken to all 1,797 real digits, weighted to the images' own share. It grows as N falls (its bias is
    of order F^2 / N): compare only distances of equal N.
    """
    num_images = len(images_N1HW)
    if num_images < 2:
        raise ConfigError(f"The judge needs at least 2 images for a covariance, got {num_images}. Sample more.")
    judge = load_classifier("judge") if judge is None else judge
    features_NF, probabilities_NK = _see(judge, images_N1HW)
    confidence_N, digits_N = probabilities_NK.max(dim=1)
    hits = int(is_minority(digits_N).sum())
    low, high = wilson_interval(hits, num_images)
    (train_N1HW, train_N), (held_out_N1HW, held_out_N) = real_digits("train"), real_digits("held_out")
    real_NF, _ = _see(judge, torch.cat([train_N1HW, held_out_N1HW]))
    real = weighted_gaussian(real_NF, mix_weights(torch.cat([train_N, held_out_N]), hits / num_images))
    seen = weighted_gaussian(features_NF, np.full(num_images, 1.0 / num_images))
    return Judgement(
        num_images=num_images,
        minority_share=hits / num_images,
        share_low=low,
        share_high=high,
        recognised_share=float((confidence_N >= RECOGNISED_CONFIDENCE).double().mean()),
        frechet_distance=frechet_distance(*seen, *real),
    )


def _read_image(path: Path) -> Tensor:
    """One PNG as 1 1 16 16 in [0, 1]."""
    try:
        with open_image(path) as image:
            if image.mode not in MODES:
                raise ConfigError(f"{path}: pixel mode {image.mode} can't be judged. Save it as 8-bit grey or RGB.")
            pixels_HWC = np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{path} can't be read as a PNG: {error}. Remove it or sample it again.") from error
    return as_digits(torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None])


def read_images(folder: Path, num_images: int) -> Tensor:
    """The first `num_images` PNG files of a folder by name (all, where there are fewer). Returns: N 1 16 16 in [0, 1].

    Raises: ConfigError where the folder or its images can't be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"SOURCE must be a folder of PNG images, got {folder}. Give the folder that sampling wrote.")
    paths = [path for path in images_of(folder) if path.suffix == ".png" and path.name != GRID][:num_images]
    if not paths:
        raise ConfigError(f"SOURCE must hold PNG images, got none in {folder}. Give the folder that sampling wrote.")
    return torch.cat([_read_image(path) for path in paths])


def _print_table(judgements: Mapping[Path, Judgement]) -> None:
    table = Table()
    table.add_column("")
    for folder, judgement in judgements.items():
        table.add_column(f"{folder.name} ({judgement.num_images})", justify="right")
    columns = list(judgements.values())
    table.add_row("share of 5-9", *(f"{each.minority_share:.1%}" for each in columns))
    table.add_row("  Wilson 95 %", *(f"{each.share_low:.1%} .. {each.share_high:.1%}" for each in columns))
    recognised = f"recognised (confidence >= {RECOGNISED_CONFIDENCE})"
    table.add_row(recognised, *(f"{each.recognised_share:.1%}" for each in columns))
    distance = "Frechet distance to real digits of the same mix"
    table.add_row(distance, *(f"{each.frechet_distance:.2f}" for each in columns))
    Console().print(table)


@app.command()
def main(
    before: Annotated[Path, typer.Argument(help="A folder of PNG images, grey or RGB, any size.")],
    after: Annotated[Path | None, typer.Argument(help="A second folder, to be judged beside the first.")] = None,
    num_images: Annotated[int, typer.Option(min=2, help="Judge at most this many of each, by name.")] = 400,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the judgement here too.")] = None,
) -> None:
    """Judge digit images. Example: python -m memdiff.digits.judge images_before images_after --json judge.json.

    The JSON holds one judgement, or `before` and `after` where two folders are given.
    """
    try:
        judgements = {folder: judge_images(read_images(folder, num_images)) for folder in (before, after) if folder}
    except MemdiffError as error:
        typer.echo(last_line(error.exit_code, str(error)), err=True)
        raise typer.Exit(error.exit_code) from error
    records = [asdict(judgement) for judgement in judgements.values()]
    if json_file is not None:
        content = records[0] if after is None else dict(zip(("before", "after"), records, strict=True))
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _print_table(judgements)


if __name__ == "__main__":
    use_expandable_segments()
    app()
