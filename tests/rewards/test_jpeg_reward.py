"""Promises of the JPEG reward: sizes are Pillow's own, signs as named, the gradient of the differentiable form true."""

import builtins
import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, interpolate

from memdiff.errors import ConfigError
from memdiff.rewards.families_config import JpegConfig
from memdiff.rewards.jpeg import JpegDistance, JpegSize, load_jpeg
from memdiff.rewards.score import score


def noise(count: int = 4, side: int = 48, *, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def smoothed(images_BCHW: torch.Tensor, factor: int) -> torch.Tensor:
    """The same images without their high frequencies."""
    return interpolate(avg_pool2d(images_BCHW, factor), scale_factor=factor, mode="bilinear")


@pytest.mark.parametrize("quality", [None, 30, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_size_is_pillows_own(quality: int | None, channels: int) -> None:
    """Kilobytes of 1,000 bytes of the file that Pillow writes at that quality (95 by default), colour and grey."""
    images_BCHW = noise(channels=channels)
    expected = []
    for image_CHW in images_BCHW.numpy():
        pixels = np.rint(image_CHW.transpose(1, 2, 0) * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality or 95)
        expected.append(len(file.getvalue()) / 1000)
    sizes = load_jpeg(JpegConfig(kind="jpeg", prefer="large", quality=quality))(images_BCHW, [""] * 4)
    assert sizes.dtype == torch.float32
    assert sizes.tolist() == pytest.approx(expected, rel=1e-6)


def test_signs_of_size() -> None:
    """small prefers the flat image, large the noisy one, by the same number of kilobytes."""
    images_BCHW = torch.cat([torch.full((1, 3, 48, 48), 0.5), noise(1)])
    small = load_jpeg(JpegConfig(kind="jpeg"))(images_BCHW, ["", ""])
    large = load_jpeg(JpegConfig(kind="jpeg", prefer="large"))(images_BCHW, ["", ""])
    assert small[0] > small[1] and large[0] < large[1]
    assert torch.equal(small, -large) and (large > 0).all()


def test_size_has_no_gradient_and_says_so() -> None:
    reward = load_jpeg(JpegConfig(kind="jpeg"))
    assert isinstance(reward, JpegSize) and not reward.differentiable and not reward.networks
    assert not reward(noise().requires_grad_(True), [""] * 4).requires_grad


def test_an_image_that_is_not_finite_scores_nan() -> None:
    """It has no size; the others keep theirs. The run's own policy decides what a NaN means."""
    images_BCHW = noise(3)
    whole = load_jpeg(JpegConfig(kind="jpeg"))(images_BCHW, [""] * 3)
    images_BCHW[1, 0, 0, 0] = float("inf")
    scores = load_jpeg(JpegConfig(kind="jpeg"))(images_BCHW, [""] * 3)
    assert scores[1].isnan() and torch.equal(scores[[0, 2]], whole[[0, 2]])


def test_values_outside_the_range_saturate() -> None:
    reward = load_jpeg(JpegConfig(kind="jpeg"))
    wide_BCHW = noise() * 3 - 1
    assert torch.equal(reward(wide_BCHW, [""] * 4), reward(wide_BCHW.clamp(0, 1), [""] * 4))


@pytest.mark.parametrize("measure", ["size", "distance"])
def test_chunks_do_not_matter(measure: Any) -> None:
    """8 images in chunks of 1, 2 and 8 have the same scores to 1e-6."""
    if measure == "distance":
        pytest.importorskip("kornia")
    reward = load_jpeg(JpegConfig(kind="jpeg", measure=measure))
    whole = score(reward, noise(8), [""] * 8, chunk=8, name="jpeg")
    for chunk in (1, 2):
        chunked_scores = score(reward, noise(8), [""] * 8, chunk=chunk, name="jpeg")
        torch.testing.assert_close(chunked_scores, whole, rtol=1e-6, atol=1e-6)


def distance(**settings: Any) -> JpegDistance:
    pytest.importorskip("kornia")
    reward = load_jpeg(JpegConfig(kind="jpeg", measure="distance", **settings))
    assert isinstance(reward, JpegDistance) and reward.differentiable
    return reward


@pytest.mark.parametrize("channels", [1, 3])
def test_the_distance_falls_with_the_high_frequencies(channels: int) -> None:
    """Noise, smoothed over 2 and over 4 pixels, then flat: each is nearer to its own JPEG than the one before."""
    images_BCHW = noise(2, channels=channels)
    stages = [images_BCHW, smoothed(images_BCHW, 2), smoothed(images_BCHW, 4), torch.full_like(images_BCHW, 0.5)]
    distances = [distance(prefer="large")(stage, ["", ""]) for stage in stages]
    for before, after in pairwise(distances):
        assert (after < before).all()
    assert torch.equal(distance()(images_BCHW, ["", ""]), -distances[0])


def test_the_distance_is_that_to_pillows_jpeg() -> None:
    """1,000 times the mean square difference to what Pillow's JPEG decodes to, within a tenth: the codec's rounding is
    a smooth stand-in, its tables are the standard's, as Pillow's are."""
    images_BCHW = smoothed(noise(2, 64), 2)
    expected = []
    for image_CHW in images_BCHW.numpy():
        pixels = np.rint(image_CHW.transpose(1, 2, 0) * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=50)
        decoded = np.asarray(Image.open(file), dtype=np.float64) / 255
        expected.append(1000 * ((pixels / 255 - decoded) ** 2).mean())
    assert distance(prefer="large")(images_BCHW, ["", ""]).tolist() == pytest.approx(expected, rel=0.1)


def test_gradients_equal_finite_differences() -> None:
    """In fp64 on 16 x 16 pixels: grad . d = (f(x + h d) - f(x - h d)) / 2h for random d, with h small enough to stay
    between the jumps of the codec's rounding."""
    reward = distance(quality=75)
    x_BCHW = (0.3 + 0.4 * noise(1, 16).double()).requires_grad_(True)
    (gradient_BCHW,) = torch.autograd.grad(reward.scores(x_BCHW).sum(), x_BCHW)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        d_BCHW = torch.randn(x_BCHW.shape, generator=generator, dtype=torch.float64)
        up, down = (reward.scores(x_BCHW + h * d_BCHW).sum().item() for h in (1e-7, -1e-7))
        along = (gradient_BCHW * d_BCHW).sum().item()
        assert (up - down) / 2e-7 == pytest.approx(along, rel=1e-4, abs=1e-4)


def test_the_gradient_makes_files_smaller() -> None:
    """A hundred steps up the gradient of the distance form take a twentieth off what the real files hold beyond the
    headers (the file of a flat image)."""
    reward, size = distance(), load_jpeg(JpegConfig(kind="jpeg", prefer="large", quality=50))
    x_BCHW = noise(2, 32)
    headers = size(torch.full_like(x_BCHW, 0.5), ["", ""])
    before = size(x_BCHW, ["", ""]) - headers
    for _ in range(100):
        x_BCHW = x_BCHW.detach().requires_grad_(True)
        (gradient_BCHW,) = torch.autograd.grad(reward(x_BCHW, ["", ""]).sum(), x_BCHW)
        x_BCHW = (x_BCHW + 0.005 * gradient_BCHW.sign()).clamp(0, 1)
    assert (size(x_BCHW.detach(), ["", ""]) - headers < 0.95 * before).all()


def test_without_kornia_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("kornia"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'kornia>=") as caught:
        load_jpeg(JpegConfig(kind="jpeg", measure="distance"))
    assert "\n" not in str(caught.value)
