"""Image classifiers in both precisions, their gradients and features, and files that are not what they should be.

Their scores are held to transformers' own in test_classifier_reward.py. Shapes: B images, C channels, H W pixels.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memdiff.errors import ConfigError
from memdiff.rewards.classifier import ClassifierReward, load_image_classifier, skeleton_image_classifier
from memdiff.rewards.config import ClassifierConfig
from tests.helpers.reward_models import Trap, write_classifier

CPU = torch.device("cpu")


def images(count: int = 3, height: int = 40, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def classifier(folder: Path, **settings: Any) -> ClassifierReward:
    part = {"kind": "classifier", "path": str(folder), "label": "male", "mode": "log_probability"} | settings
    return load_image_classifier(ClassifierConfig.model_validate(part), CPU)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_half_precision_is_within_a_hundredth(kind: str, tmp_path: Path) -> None:
    """log p in fp16 against fp32, images that are resized: 1e-2 relative; the scores are fp32 either way."""
    write_classifier(tmp_path / "net", kind)
    full, half = (classifier(tmp_path / "net", precision=name)(images(4), [""] * 4) for name in ("auto", "fp16"))
    assert half.dtype == full.dtype == torch.float32
    assert half.tolist() == pytest.approx(full.tolist(), rel=1e-2) and not torch.equal(half, full)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_classifier_gradients_equal_finite_differences(kind: str, tmp_path: Path) -> None:
    """fp64, images that are resized: central differences along 4 random directions, 1e-6 relative."""
    write_classifier(tmp_path / "net", kind)
    reward = classifier(tmp_path / "net")
    reward.networks[0].double()
    network: Any = reward.networks[0]

    def of(x: torch.Tensor) -> torch.Tensor:
        return network(reward.backbone._processing(x)).logits.log_softmax(dim=1)[:, 1].sum()

    batch_BCHW = images(2).double().requires_grad_()
    (gradient,) = torch.autograd.grad(of(batch_BCHW), batch_BCHW)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        way = torch.randn(batch_BCHW.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            slope = float(of(batch_BCHW + 1e-6 * way) - of(batch_BCHW - 1e-6 * way)) / 2e-6
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-6)


def test_classifier_features_are_an_embedding_an_image(tmp_path: Path) -> None:
    """The last hidden state averaged: 32 numbers of the ViT, 16 of the ResNet; equal images have equal ones."""
    for kind, width in (("vit", 32), ("resnet", 16)):
        write_classifier(tmp_path / kind, kind)
        batch_BCHW = images(2, 32, 32)[[0, 1, 0]]
        features_BD = classifier(tmp_path / kind).features(batch_BCHW)
        assert features_BD.shape == (3, width) and torch.allclose(features_BD[0], features_BD[2], atol=1e-6)
        assert not torch.allclose(features_BD[0], features_BD[1], atol=1e-3)


def spoil_truncate(folder: Path, marker: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def spoil_pickle(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Trap(marker)}))


def spoil_architecture(folder: Path, marker: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def spoil_width(folder: Path, marker: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def spoil_processing(folder: Path, marker: Path) -> None:
    processing = json.loads((folder / "preprocessor_config.json").read_text())
    del processing["size"]  # 224 where none is said
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))


@pytest.mark.parametrize("spoil", [spoil_truncate, spoil_pickle, spoil_architecture, spoil_width, spoil_processing])
def test_a_spoilt_classifier_is_one_line_and_runs_nothing(spoil: Callable[[Path, Path], None], tmp_path: Path) -> None:
    """Cut off, a pickle that wants to run code, a layer too many (which loads at random otherwise), another width,
    images of another size than the network's."""
    write_classifier(tmp_path / "net")
    spoil(tmp_path / "net", tmp_path / "ran")
    with pytest.raises(ConfigError) as caught:
        classifier(tmp_path / "net")
    assert str(tmp_path / "net") in str(caught.value) and len(str(caught.value)) < 700
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["vit", "something-of-their-own"])
def test_code_beside_a_model_is_never_asked_about(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto_map: transformers would ask "Do you wish to run the custom code? [y/N]". One of its own classes is loaded
    without that code, another is refused in one line; in a plan too."""
    write_classifier(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"AutoConfig": "theirs.Config", "AutoModelForImageClassification": "theirs.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": names, "model_type": model_type}))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    part = ClassifierConfig.model_validate({"kind": "classifier", "path": str(tmp_path), "label": "male"})
    for load in (load_image_classifier, skeleton_image_classifier):
        if model_type == "vit":
            load(part, CPU)
        else:
            with pytest.raises(ConfigError, match=r"can't be loaded|no config that can be read") as caught:
                load(part, CPU)
            assert "\n" not in str(caught.value)
    assert asked == [] and not (tmp_path / "ran").exists()
