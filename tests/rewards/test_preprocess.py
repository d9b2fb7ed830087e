"""Preprocessing as tensor code against PIL, whose 8-bit bicubic the published reward models were trained behind."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from memdiff.rewards.image_reward import preprocess
from memdiff.rewards.preprocess import CLIP_MEAN, CLIP_STD, resize

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    """Two real photographs, 427 x 640 x 3 uint8."""
    bundled = load_sample_images()
    return {name.rsplit("/", 1)[-1]: image for name, image in zip(bundled.filenames, bundled.images, strict=True)}


def as_tensor(image_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("size", [(224, 224), (224, 336), (512, 512), (800, 1200)])
@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
def test_resize_is_pils_up_to_its_rounding(photographs, name, size, kind):
    """Down and up: PIL rounds to 8 bits after each of its two passes: a mean under 0.3 levels.

    Bicubic overshoots at edges, and PIL saturates between the passes, which no single clamp repeats: up to 10 levels
    there, in less than a pixel in a thousand more than 2.
    """
    photo = photographs[name]
    want = as_tensor(np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling[kind.upper()])))
    difference = (resize(as_tensor(photo), size, kind) - want).abs() * 255
    assert difference.mean() <= 0.3
    assert difference.max() <= (12 if kind == "bicubic" else 1.1)
    assert (difference > 2).double().mean() < 1e-3


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_clips_preprocessing_of_an_oblong_photograph(photographs, name):
    """Shorter side to 224, middle square, CLIP's normalisation undone: mean <= 2/255 of PIL's resize and crop.

    427 x 640 -> 224 x int(224 * 640 / 427) = 335; the crop starts at round((335 - 224) / 2) = 56 (55.5 to even).
    """
    photo = photographs[name]
    resized = Image.fromarray(photo).resize((335, 224), Image.Resampling.BICUBIC).crop((56, 0, 280, 224))
    got = preprocess(as_tensor(photo), 224)[0] * torch.tensor(CLIP_STD)[:, None, None]
    got = got + torch.tensor(CLIP_MEAN)[:, None, None]
    difference = (got - as_tensor(np.asarray(resized))[0]).abs()
    assert got.shape == (3, 224, 224)
    assert difference.mean() <= 2 / 255
    shifted = as_tensor(np.asarray(resized))[0].roll(1, 2)
    assert (got - shifted).abs().mean() > 2 * difference.mean()


def test_an_image_of_the_networks_size_is_only_normalised():
    """(x - mean) / std, nothing resampled."""
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    want = (image - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    assert torch.equal(preprocess(image, 224), want)
