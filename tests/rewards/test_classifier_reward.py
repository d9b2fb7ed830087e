"""Hugging Face image classifiers, held against transformers' model behind PIL's own resize.

Shapes: B images, H W pixels, L labels.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from memdiff.errors import ConfigError
from memdiff.rewards.classifier import ClassifierReward, ImageProcessing, load_image_classifier
from memdiff.rewards.config import ClassifierConfig

CPU = torch.device("cpu")
SIDE = 32
LABELS = ["female", "Male", "neither nor"]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PROCESSING = {
    "vit": {
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    # microsoft/resnet-50's: an int size and crop_pct mean resize to size / crop_pct, then crop to size.
    "resnet": {
        "do_resize": True,
        "size": SIDE,
        "crop_pct": 0.875,
        "resample": 3,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    },
}


def make_model(kind: str, labels: list[str]) -> Any:
    """A small network whose probabilities differ by image, around a half: its last layer is scaled up and shifted."""
    torch.manual_seed(0)
    names: Any = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    if kind == "vit":
        config = ViTConfig(
            image_size=SIDE, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, hidden_dropout_prob=0.0, **names,
        )  # fmt: skip
        model: Any = ViTForImageClassification(config)
        last = model.classifier
    else:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **names)
        model = ResNetForImageClassification(config)
        last = model.classifier[1]
    with torch.no_grad():
        last.weight.normal_(0, 1)
        pixels = torch.cat([by_pil(image, kind) for image in pictures(6, SIDE, SIDE)])
        last.bias -= model.eval()(pixels).logits.mean(0)
    return model


def write_folder(folder: Path, kind: str, labels: list[str] = LABELS, **changes: Any) -> Any:
    """What `from_pretrained` loads: the network, and its image processor's JSON as hub folders hold it."""
    model = make_model(kind, labels)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSING[kind] | changes))
    return model


def reward_of(folder: Path, label: str = "male", **config: Any) -> ClassifierReward:
    return load_image_classifier(ClassifierConfig(kind="classifier", path=str(folder), label=label, **config), CPU)


def pictures(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Images of all contrasts and colours, in the 256 levels that PIL knows: B C H W in [0, 1]."""
    rng = np.random.default_rng(0)
    coarse_BCHW = torch.from_numpy(rng.random((count, channels, 6, 6), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse_BCHW, size=(height, width), mode="bilinear")
    return (
        (smooth + 0.1 * torch.from_numpy(rng.random(smooth.shape, dtype=np.float32))).clamp(0, 1) * 255
    ).round() / 255


def by_pil(image_CHW: torch.Tensor, kind: str) -> torch.Tensor:
    """What transformers' own image processor makes of an image, by PIL in 8 bits: 1 3 32 32."""
    pixels = (image_CHW * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    if kind == "vit":
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        mean, std = [0.5] * 3, [0.5] * 3
    else:
        width, height = picture.size
        shortest = int(SIDE / 0.875)  # 36
        size = (shortest * width // min(width, height), shortest * height // min(width, height))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (picture.width - SIDE) // 2, (picture.height - SIDE) // 2
        picture = picture.crop((left, top, left + SIDE, top + SIDE))
        mean, std = MEAN, STD
    values = (np.asarray(picture, dtype=np.float64) / 255 - mean) / std
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [(48, 48), (20, 20), (64, 40), (33, 77)], ids=str)
@pytest.mark.parametrize("kind", PROCESSING)
def test_probabilities_are_transformers_own(tmp_path: Path, kind: str, size: tuple[int, int]):
    """Larger, smaller, upright and wide images: the probability within 2e-2 of transformers' model behind PIL's resize,
    which rounds to 8 bits; and the probabilities tell the images apart far more than that."""
    model, images = write_folder(tmp_path, kind), pictures(6, *size)
    with torch.no_grad():
        pixels = torch.cat([by_pil(image, kind) for image in images])
        truth_B = model(pixels).logits.softmax(dim=1)[:, 1]
    found_B = reward_of(tmp_path, mode="probability")(images, [""] * 6)
    assert found_B.shape == (6,) and found_B.dtype == torch.float32
    assert (found_B - truth_B).abs().max() <= 2e-2
    assert truth_B.max() - truth_B.min() > 0.1


def test_without_a_resize_it_is_exact(tmp_path: Path):
    """Images of the network's own size: the same log-probability, bit for bit, as transformers' model gives."""
    model, images = write_folder(tmp_path, "vit"), pictures(4, SIDE, SIDE)
    with torch.no_grad():
        truth_BL = model((images - 0.5) / 0.5).logits.log_softmax(dim=1)
    for number, label in enumerate(LABELS):
        assert torch.equal(reward_of(tmp_path, label, mode="log_probability")(images, [""] * 4), truth_BL[:, number])
    probabilities = [reward_of(tmp_path, label, mode="probability")(images, [""] * 4) for label in LABELS]
    torch.testing.assert_close(torch.stack(probabilities).sum(dim=0), torch.ones(4))


@pytest.mark.parametrize("labels", [["female", "Male"], ["MALE", "female"], ["other", "female", "male"]])
@pytest.mark.parametrize("asked", ["male", "MALE", "Male"])
def test_a_label_is_found_by_name(tmp_path: Path, labels: list[str], asked: str):
    """Whatever its position and letter case, and never as part of another name."""
    model, images = write_folder(tmp_path, "vit", labels), pictures(3, SIDE, SIDE)
    position = [label.lower() for label in labels].index("male")
    with torch.no_grad():
        truth_B = model((images - 0.5) / 0.5).logits.log_softmax(dim=1)[:, position]
    assert torch.equal(reward_of(tmp_path, asked, mode="log_probability")(images, [""] * 3), truth_B)


def test_an_unknown_label_lists_those_there_are(tmp_path: Path):
    """One line: the folder, what was asked for, what there is; of many labels ten, and the number of the others."""
    write_folder(tmp_path / "few", "vit")
    with pytest.raises(ConfigError, match=r"few has no label 'mal'; it has Male, female, neither nor$") as caught:
        reward_of(tmp_path / "few", "mal")
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    write_folder(tmp_path / "many", "vit", [f"kind {number}" for number in range(25)])
    with pytest.raises(ConfigError, match=r"it has (kind \d+, ){9}kind \d+ and 15 more$"):
        reward_of(tmp_path / "many", "cat")


def test_thresholds_are_on_the_label(tmp_path: Path):
    """binary and confident follow the probability of the label with the recipe's own thresholds."""
    write_folder(tmp_path, "vit")
    images = pictures(8, SIDE, SIDE)
    p_B = reward_of(tmp_path, mode="probability")(images, [""] * 8)
    low, high = (float(p_B.sort().values[k : k + 2].mean()) for k in (1, 5))  # two below, two above
    binary = reward_of(tmp_path, mode="binary", low=low, high=high)(images, [""] * 8)
    confident = reward_of(tmp_path, mode="confident", low=low, high=high)(images, [""] * 8)
    assert torch.equal(binary, (p_B > high).float()) and binary.sum() == 2
    assert torch.equal(confident, torch.where((p_B > high) | (p_B < low), p_B, 0.0)) and (confident != 0).sum() == 4


@pytest.mark.parametrize("kind", PROCESSING)
def test_gradients_reach_the_images(tmp_path: Path, kind: str):
    """Through resize, crop and network: autograd's directional derivative is the real one; pixels that the crop leaves
    out have none; the network's weights stay as they are."""
    write_folder(tmp_path, kind)
    reward = reward_of(tmp_path, mode="log_probability")
    images = pictures(1, 48, 80).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, [""]).sum(), images)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        up, down = (reward(images + sign * 3e-2 * direction, [""]).item() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((up - down) / 6e-2, rel=0.05)
    assert (gradient[..., :8].abs().sum() == 0) == (kind == "resnet")
    assert not any(parameter.requires_grad for network in reward.networks for parameter in network.parameters())
    assert not reward_of(tmp_path, mode="binary")(images, [""]).requires_grad


def test_grey_images_are_three_equal_channels(tmp_path: Path):
    """One channel is scored as its own copies."""
    write_folder(tmp_path, "vit")
    reward, grey = reward_of(tmp_path, mode="probability"), pictures(3, 48, 48, channels=1)
    assert torch.equal(reward(grey, [""] * 3), reward(grey.repeat(1, 3, 1, 1), [""] * 3))


def test_processors_without_steps(tmp_path: Path):
    """do_resize and do_normalize may be off, a center crop may follow a resize of the shorter side (CLIP's way)."""
    plain = ImageProcessing.from_json({"do_resize": False, "do_normalize": False}, "here")
    images = pictures(2, 40, 48)
    assert torch.equal(plain(images), images)
    clip = {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 16, "width": 12}}
    made = ImageProcessing.from_json(clip | {"do_normalize": False, "resample": 3}, "here")(images)
    assert made.shape == (2, 3, 16, 12)
    pixels = (images[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    truth = Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC).crop((6, 2, 18, 18))
    difference = made[0].permute(1, 2, 0) - torch.from_numpy(np.asarray(truth, dtype=np.float32)) / 255
    assert difference.abs().max() <= 1.5 / 255


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"longest_edge": 32}, "do_normalize": False},
        {"size": 32, "resample": 1, "do_normalize": False},
    ],
)
def test_an_unknown_resize_is_refused(config: dict[str, Any]):
    """Rather than guessed at: the line names the folder, the size and the filter."""
    with pytest.raises(ConfigError, match=r"^here: its image processor's size .* or resample \d is not supported$"):
        ImageProcessing.from_json(config, "here")


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path):
    """Nothing there, no processor, or weights that are not the network's: one line, exit code 2, and what to fetch."""
    with pytest.raises(ConfigError, match=r"can't be loaded .* or fetch a hub id first"):
        reward_of(tmp_path)
    write_folder(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json") as caught:
        reward_of(tmp_path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
