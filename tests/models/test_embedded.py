"""The embedded digits: data, classifiers, diffusion model, judge, and the card that describes them."""

# Shapes: N images, C channels, H W pixels (16 x 16), F features.

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from typer.testing import CliRunner

from benchmarks.embedded_models import build, measure, training
from memdiff.digits.classifiers import DigitClassifier, as_digits, load_classifier
from memdiff.digits.judge import (
    app,
    frechet_distance,
    judge_images,
    mix_weights,
    read_images,
    weighted_gaussian,
    wilson_interval,
)
from memdiff.digits.paths import CLASSIFIERS, DIGITS_DDPM
from memdiff.digits.scans import MINORITY_SHARE, augment, is_minority, real_digits, thinned_mix
from memdiff.errors import ConfigError

ROOM = DIGITS_DDPM.parent
CARD = json.loads((ROOM / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["reward", "judge"])
def named_classifier(request: pytest.FixtureRequest) -> tuple[str, DigitClassifier]:
    return request.param, load_classifier(request.param)


@pytest.fixture(scope="module")
def samples_200() -> Tensor:
    return measure.draw_samples(*measure.load_ddpm(DIGITS_DDPM), 200)


def test_the_split_is_disjoint_and_stratified():
    """1,797 scans: every one on one side, a fifth of each digit held out (to one image)."""
    (train, train_labels), (held_out, held_out_labels) = real_digits("train"), real_digits("held_out")
    assert len(train) + len(held_out) == 1797
    counts = torch.bincount(train_labels) + torch.bincount(held_out_labels)
    assert ((torch.bincount(held_out_labels) - 0.2 * counts).abs() <= 1).all()
    assert train.dtype == torch.float32 and train.min() == 0.0 and train.max() == 1.0
    # A few scans of the set are equal to the last grey level; an overlap of the sides would be all 360.
    assert int((torch.cdist(held_out.flatten(1), train.flatten(1)).min(dim=1).values < 1e-4).sum()) < 5


def test_the_mix_holds_22_percent_and_thins_each_digit_alike():
    """Of n images 0-4 the mix keeps 0.22 / 0.78 n images 5-9: the share is right to one image of the whole."""
    images, labels = thinned_mix(seed=3)
    assert abs(int(is_minority(labels).sum()) - MINORITY_SHARE * len(images)) <= 1
    counts = torch.bincount(labels)
    assert int(counts[5:].max() - counts[5:].min()) <= 1
    assert int(counts[:5].sum()) == int((~is_minority(real_digits("train")[1])).sum())


def test_augmentation_is_a_function_of_the_generator_and_strength_0_changes_nothing():
    images, _ = real_digits("held_out")
    draw: Callable[[int, float], Tensor] = lambda seed, strength: augment(  # noqa: E731
        images, torch.Generator().manual_seed(seed), strength=strength
    )
    assert torch.equal(draw(1, 1.0), draw(1, 1.0))
    assert (draw(1, 1.0) - draw(2, 1.0)).abs().mean() > 0.01
    torch.testing.assert_close(draw(1, 0.0), images, atol=1e-5, rtol=0)
    assert draw(1, 1.0).min() >= 0.0 and draw(1, 1.0).max() <= 1.0


def test_classifiers_name_held_out_digits_plain_and_augmented(named_classifier: tuple[str, DigitClassifier]):
    """At least 98 % of the held-out digits; augmented at full strength at least 97 %: they stay legible."""
    name, net = named_classifier
    images, labels = real_digits("held_out")
    assert measure.accuracy(net) >= 0.98
    assert measure.accuracy(net) == pytest.approx(CARD["held_out_accuracy"][name], abs=1.5 / 360)
    turned = augment(images, torch.Generator().manual_seed(0))
    assert float((net(turned).argmax(dim=1) == labels).float().mean()) >= 0.97


def test_classifiers_are_sure_of_digits_and_not_of_anything_else(named_classifier: tuple[str, DigitClassifier]):
    """Confidence >= 0.8 on at least 95 % of held-out digits, on at most 1 % of pixel noise, not on blank paper.

    Of blobs (4 x 4 noise upscaled, a kind no training saw) on at most 10 %: some do look like a thick 1 or 0.
    """
    _, net = named_classifier
    generator = torch.Generator().manual_seed(7)
    noise = torch.rand(300, 1, 16, 16, generator=generator)
    blobs = F.interpolate(torch.rand(2000, 1, 4, 4, generator=generator), size=(16, 16), mode="bilinear")
    confident: Callable[[Tensor], float] = lambda x: float(  # noqa: E731
        (net(x).softmax(dim=1).max(dim=1).values >= 0.8).float().mean()
    )
    assert confident(real_digits("held_out")[0]) >= 0.95
    assert confident(noise) <= 0.01
    assert confident(blobs) <= 0.1
    assert confident(torch.zeros(1, 1, 16, 16)) == 0.0


def test_classifiers_are_frozen_float32_and_differentiable_in_the_images(named_classifier: tuple[str, DigitClassifier]):
    """The gradient of a logit agrees with a central difference along a random direction (float32: 2 %)."""
    _, net = named_classifier
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in net.parameters())
    assert not net.training
    image = real_digits("held_out")[0][:1].repeat(1, 3, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(net(image)[0, 3], image)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        slope = (net(image + 1e-2 * direction) - net(image - 1e-2 * direction))[0, 3] / 2e-2
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=0.02)


def test_features_lead_to_the_logits(named_classifier: tuple[str, DigitClassifier]):
    _, net = named_classifier
    images = real_digits("held_out")[0][:4]
    assert net.features(images).shape == (4, net.num_features)
    torch.testing.assert_close(net.head(net.features(images)), net(images))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (40, 24), (16, 16)])
def test_resizing_is_torch_bilinear_with_averaged_channels(height: int, width: int):
    """Two matrix products give what F.interpolate gives."""
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images.mean(dim=1, keepdim=True), size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(as_digits(images), expected, atol=1e-6, rtol=1e-5)


def test_the_weights_weigh_under_4_mb():
    files = [*DIGITS_DDPM.rglob("*.safetensors"), *CLASSIFIERS.rglob("*.safetensors")]
    assert len(files) == 3
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert {str(path.relative_to(ROOM)): path.stat().st_size for path in files} == CARD["bytes"]
    assert (ROOM / "samples.png").stat().st_size < 60_000


def test_the_pipeline_loads_in_float32_with_standard_attention_names():
    """Stored in fp16; plain diffusers gives float32, T = 1000 linear, and LoRA finds its four usual targets."""
    unet, scheduler = measure.load_ddpm(DIGITS_DDPM)
    assert unet.dtype == torch.float32
    assert scheduler.config["num_train_timesteps"] == 1000 and scheduler.config["beta_schedule"] == "linear"
    names = [name for name, _ in unet.named_modules()]
    for target in ("to_q", "to_k", "to_v", "to_out.0"):
        assert any(name.endswith("." + target) for name in names)
    assert sum(p.numel() for p in unet.parameters()) == CARD["parameters"]["ddpm"]


def test_200_samples_hold_the_share_and_are_recognised(samples_200: Tensor):
    """Three binomial standard deviations of 200 draws at 22 %: 3 sqrt(0.22 * 0.78 / 200) = 8.8 %."""
    judgement = judge_images(samples_200)
    assert judgement.minority_share == pytest.approx(0.22, abs=0.088)
    assert judgement.recognised_share >= 0.9


def test_samples_are_not_copies(samples_200: Tensor):
    """The median sample is at least 0.8 times as far from augmented training digits as the median held-out digit."""
    distances = measure.memorisation(
        samples_200, load_classifier("judge"), training.Settings(**CARD["settings"]["ddpm"]), copies=5
    )
    assert distances["samples 0-4"]["median"] > 0.8 * distances["held_out 0-4"]["median"]


@pytest.mark.slow
def test_1000_samples_hold_the_share_as_the_card_says():
    """22 % +- 4 over 1,000 images of the card's seed; other machines round differently, so its figure to 2 %."""
    judgement = judge_images(measure.draw_samples(*measure.load_ddpm(DIGITS_DDPM), 1000))
    assert judgement.minority_share == pytest.approx(0.22, abs=0.04)
    assert judgement.minority_share == pytest.approx(CARD["samples"]["minority_share"], abs=0.02)
    assert judgement.recognised_share == pytest.approx(CARD["samples"]["recognised_share"], abs=0.02)
    assert judgement.frechet_distance == pytest.approx(CARD["samples"]["frechet_distance"], rel=0.1)


def test_the_card_judges_the_held_out_digits_as_we_do():
    assert asdict(judge_images(real_digits("held_out")[0])) == pytest.approx(CARD["held_out_digits"], rel=1e-2)


def test_frechet_of_diagonal_gaussians():
    """Means 5 apart, standard deviations (1, 2) and (3, 1): 25 + (1 - 3)^2 + (2 - 1)^2 = 30; and 0 to itself."""
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 1.0])
    assert frechet_distance(np.zeros(2), a, np.array([3.0, 4.0]), b) == pytest.approx(30.0)
    assert frechet_distance(np.zeros(2), a, np.zeros(2), a) == pytest.approx(0.0, abs=1e-12)


def test_frechet_of_gaussians_that_do_not_commute():
    """For 2 x 2, tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)), as roots r, s of the eigenvalues have
    (r + s)^2 = r^2 + s^2 + 2 r s.

    A = [[2, 1], [1, 2]], B = diag(1, 4): tr AB = 10, det AB = 12, so d = 4 + 5 - 2 sqrt(10 + 2 sqrt 12).
    """
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.diag([1.0, 4.0])
    expected = 9.0 - 2.0 * np.sqrt(10.0 + 2.0 * np.sqrt(12.0))
    assert frechet_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected)


def test_frechet_of_singular_covariances():
    """Rank 1 on an axis and on the diagonal: A = diag(4, 0), B = [[1, 1], [1, 1]]: tr AB = 4, det 0: 4 + 2 - 4 = 2."""
    distance = frechet_distance(np.zeros(2), np.diag([4.0, 0.0]), np.zeros(2), np.ones((2, 2)))
    assert distance == pytest.approx(2.0)


def test_weighted_gaussian_by_hand_and_as_numpy():
    """Points 0, 4 with weights 3/4, 1/4: mean 1, E(x - 1)^2 = 3/4 + 9/4 = 3, divisor 1 - (9 + 1)/16 = 3/8: 8."""
    mean, covariance = weighted_gaussian(np.array([[0.0], [4.0]]), np.array([0.75, 0.25]))
    assert mean[0] == pytest.approx(1.0) and covariance[0, 0] == pytest.approx(8.0)
    points = np.random.default_rng(0).normal(size=(20, 3))
    _, covariance = weighted_gaussian(points, np.full(20, 1 / 20))
    np.testing.assert_allclose(covariance, np.cov(points.T))


def test_mix_weights_by_hand():
    """Two 0s share 0.7 / 5 = 0.14: 0.07 each; three 9s share 0.3 / 5 = 0.06: 0.02 each; singles take 0.14 or 0.06."""
    labels = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9])
    expected = [0.07, 0.07, 0.14, 0.14, 0.14, 0.14, 0.06, 0.06, 0.06, 0.06, 0.02, 0.02, 0.02]
    np.testing.assert_allclose(mix_weights(labels, 0.3), expected)


def test_wilson_interval_by_hand():
    """50 of 100: 0.5 +- 1.96 sqrt(0.0025 + 0.000096) / 1.0384 = 0.0962. 0 of 10: 0 to z^2 / (10 + z^2) = 0.2775."""
    assert wilson_interval(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-5)
    assert wilson_interval(10, 10) == pytest.approx((1 - 0.277533, 1.0), abs=1e-5)


def test_moving_the_share_costs_no_distance_and_spoiling_the_digits_does():
    """Real digits at a share of 22 % and of 78 % are both near; against each other they are far; blurred, far too."""
    images = torch.cat([real_digits("train")[0], real_digits("held_out")[0]])
    labels = torch.cat([real_digits("train")[1], real_digits("held_out")[1]])
    low, high = images[~is_minority(labels)], images[is_minority(labels)]
    few, many = torch.cat([low[:624], high[:176]]), torch.cat([low[:176], high[:624]])
    judge = load_classifier("judge")
    uniform = np.full(800, 1 / 800)
    features = [judge.features(part).double().numpy() for part in (few, many)]
    apart = frechet_distance(*weighted_gaussian(features[0], uniform), *weighted_gaussian(features[1], uniform))
    assert judge_images(few).frechet_distance < apart / 5
    assert judge_images(many).frechet_distance < apart / 5
    blurred = F.avg_pool2d(few, 5, stride=1, padding=2)
    assert judge_images(blurred).frechet_distance > 5 * judge_images(few).frechet_distance


def test_the_judge_command_reads_pngs_and_writes_json(tmp_path: Path):
    """Grey and RGB files, doubled in size: the JSON is what judge_images says of the files read back."""
    images, _ = real_digits("held_out")
    for index, image_HW in enumerate((255 * images[:30, 0]).round().to(torch.uint8).numpy()):
        picture = Image.fromarray(image_HW).convert("RGB" if index % 2 else "L")
        picture.resize((32, 32), Image.Resampling.BILINEAR).save(tmp_path / f"{index:03d}.png")
    result = CliRunner().invoke(app, [str(tmp_path), "--num-images", "20", "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["num_images"] == 20
    assert written == asdict(judge_images(read_images(tmp_path, 20)))
    torch.testing.assert_close(read_images(tmp_path, 20), images[:20], atol=0.15, rtol=0)


def test_the_judge_command_refuses_what_it_cannot_judge(tmp_path: Path):
    """No folder, an empty one, one image, a file that is no PNG: exit code 2 and one line."""
    assert CliRunner().invoke(app, [str(tmp_path / "none")]).exit_code == 2
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exit_code == 2 and "must hold PNG images" in result.output
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 2
    (tmp_path / "b.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"b\.png can't be read"):
        read_images(tmp_path, 10)


def test_a_build_writes_every_file_and_a_card_of_what_it_wrote(tmp_path: Path):
    """Two updates of each network: the files, their bytes, and the figures of the shipped card's names."""
    card = build.build(tmp_path, max_updates=2, num_samples=20)
    assert set(card) == set(CARD)
    assert {name: (tmp_path / name).stat().st_size for name in card["bytes"]} == card["bytes"]
    assert set(card["bytes"]) == set(CARD["bytes"])
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8")) == card
    assert (tmp_path / "samples.png").exists()
    assert card["held_out_accuracy"]["judge"] == measure.accuracy(load_classifier("judge", tmp_path / "classifiers"))


def test_training_is_a_function_of_its_seed():
    """The same settings give the same weights bit for bit, whatever torch's global generator did before."""
    settings = training.Settings(
        seed=1, updates=2, batch=8, learning_rate=1e-3, weight_decay=0.0, ema=0.5, augmentation=1.0
    )
    torch.manual_seed(0)
    first = training.train_ddpm(settings).state_dict()
    torch.manual_seed(1)
    second = training.train_ddpm(settings).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
