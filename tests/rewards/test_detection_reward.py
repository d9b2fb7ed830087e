"""Promises of the detection reward: an object named in words, added, removed or counted.

Shapes: B images, C channels, H W pixels, P patches, N boxes.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Owlv2Config, Owlv2ForObjectDetection, OwlViTConfig, OwlViTForObjectDetection
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

from memdiff.errors import ConfigError
from memdiff.rewards.detection import DetectionReward, intersection_over_union, load_detection, separate, soft_count
from memdiff.rewards.families_config import DetectionConfig
from memdiff.rewards.preprocess import CLIP_MEAN, CLIP_STD
from memdiff.rewards.score import score
from tests.helpers.reward_models import ids_by_hand, shake, write_tokenizer, write_trap

CPU = torch.device("cpu")
DETECTORS = ("owlvit", "owlv2")
MODES: tuple[dict[str, Any], ...] = ({"mode": "add"}, {"mode": "remove"}, {"mode": "count", "count": 2})
VOCABULARY_SIZE = 518


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(count: int, height: int = 32, width: int = 32, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def write(kind: str, folder: Path, *, full: bool = False) -> OwlViTForObjectDetection | Owlv2ForObjectDetection:
    """A detector folder with tokenizer, as transformers saves it. full: google/owlvit-base-patch32's sizes."""
    text = {
        "vocab_size": VOCABULARY_SIZE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 516, "eos_token_id": 517,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    if full:
        text = {"vocab_size": VOCABULARY_SIZE, "bos_token_id": 516, "eos_token_id": 517}
        vision = {"image_size": 768, "patch_size": 32}
    classes: Any = {
        "owlvit": (OwlViTConfig, OwlViTForObjectDetection),
        "owlv2": (Owlv2Config, Owlv2ForObjectDetection),
    }
    config_class, model_class = classes[kind]
    torch.manual_seed(0)
    config = config_class(text_config=text, vision_config=vision, projection_dim=512 if full else 32)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in (*model.class_head.parameters(), *model.box_head.parameters()):
            parameter.mul_(0.02 if full else 0.15)  # transformers fills the heads with std 1, where every p is 0 or 1
    shake(model, 0, 0.02)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def make(kind: str, folder: Path, **settings: Any) -> tuple[DetectionReward, Any]:
    model = write(kind, folder)
    part: dict[str, Any] = {"kind": "detection", "path": str(folder), "object": "a cat", "threshold": 0.5} | settings
    return load_detection(DetectionConfig(**part), CPU), model


@torch.no_grad()
def truth(model: Any, images_BCHW: torch.Tensor, part: DetectionConfig) -> list[float]:
    """transformers' whole forward, one image at a time, the words padded with zeros to 16 as its processor does;
    then the formulae of the module's docstring in plain Python, suppression box by box."""
    ids = ids_by_hand(part.object, VOCABULARY_SIZE)
    padded = torch.tensor([ids + [0] * (16 - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (16 - len(ids))])
    pixels_BCHW = (images_BCHW - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    rewards = []
    for pixels_CHW in pixels_BCHW:
        output = model(input_ids=padded, attention_mask=mask, pixel_values=pixels_CHW[None])
        logits = output.logits[0, :, 0].double().tolist()
        if part.mode == "add":
            rewards.append(math.log(1 / (1 + math.exp(-max(logits)))))
        elif part.mode == "remove":
            rewards.append(math.log(1 - 1 / (1 + math.exp(-max(logits)))))
        else:
            assert part.count is not None
            total = count_by_hand(logits, output.pred_boxes[0].double().tolist(), part.threshold)
            rewards.append(-abs(total - part.count))
    return rewards


def count_by_hand(logits: list[float], boxes: list[list[float]], threshold: float) -> float:
    level = math.log(threshold / (1 - threshold))
    kept: list[int] = []
    for index in sorted(range(len(logits)), key=lambda i: -logits[i])[:32]:
        if all(overlap_by_hand(boxes[index], boxes[other]) <= 0.5 for other in kept):
            kept.append(index)
    return sum(1 / (1 + math.exp(-(logits[index] - level) / 0.5)) for index in kept)


def overlap_by_hand(a: list[float], b: list[float]) -> float:
    def shared(axis: int) -> float:
        low = max(box[axis] - box[axis + 2] / 2 for box in (a, b))
        high = min(box[axis] + box[axis + 2] / 2 for box in (a, b))
        return max(0.0, high - low)

    both = shared(0) * shared(1)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


@pytest.mark.parametrize("settings", MODES)
@pytest.mark.parametrize("kind", DETECTORS)
def test_scores_equal_an_independent_computation(kind: str, settings: dict, tmp_path: Path) -> None:
    """Weights in the published file format give what transformers' whole model and the formula give; <= 1e-5."""
    reward, model = make(kind, tmp_path / "model", **settings)
    scores = reward(images(6), [""] * 6)
    assert scores.dtype == torch.float32 and scores.shape == (6,)
    assert scores.tolist() == pytest.approx(truth(model, images(6), reward.part), abs=1e-5)
    assert scores.std() > 1e-4


@pytest.mark.slow
def test_owlvit_at_full_size(tmp_path: Path) -> None:
    """OWL-ViT base, patch 32, 768 x 768 pixels, 576 boxes; <= 1e-4 from transformers' own forward."""
    model = write("owlvit", tmp_path / "model", full=True)
    for settings in MODES:
        part = DetectionConfig(kind="detection", path=str(tmp_path / "model"), object="a cat", **settings)
        scores = load_detection(part, CPU)(images(1, 768, 768), [""])
        assert scores.tolist() == pytest.approx(truth(model, images(1, 768, 768), part), abs=1e-4)


def test_signs(tmp_path: Path) -> None:
    """add and remove are log p and log (1 - p) of the same p: their exponentials sum to 1."""
    add, _ = make("owlv2", tmp_path / "model", mode="add")
    remove, _ = make("owlv2", tmp_path / "model", mode="remove")
    total = add(images(3), [""] * 3).exp() + remove(images(3), [""] * 3).exp()
    assert total.tolist() == pytest.approx([1.0] * 3, abs=1e-6)


@pytest.mark.parametrize("mode", ["add", "remove"])
def test_the_gradient_leads_there(mode: str, tmp_path: Path) -> None:
    """Fifty steps up the gradient move p of the likeliest box the wanted way in each image, by 0.1 on average."""
    reward, _ = make("owlvit", tmp_path / "model", mode=mode)
    x_BCHW = images(2)
    before = reward.detect(x_BCHW)[0].amax(dim=1).sigmoid()
    for _ in range(50):
        x_BCHW = x_BCHW.detach().requires_grad_(True)
        (gradient_BCHW,) = torch.autograd.grad(reward(x_BCHW, ["", ""]).sum(), x_BCHW)
        x_BCHW = (x_BCHW + 0.02 * gradient_BCHW.sign()).clamp(0, 1)
    change = reward.detect(x_BCHW)[0].amax(dim=1).sigmoid() - before
    change = change if mode == "add" else -change
    assert change.min() > 0.02 and change.mean() > 0.1


@pytest.mark.parametrize("settings", MODES)
@pytest.mark.parametrize("kind", DETECTORS)
def test_gradients_equal_finite_differences(kind: str, settings: dict, tmp_path: Path) -> None:
    """In fp64, through the resize from 40 to 32 pixels: grad . d = (f(x + h d) - f(x - h d)) / 2h for random d."""
    reward, _ = make(kind, tmp_path / "model", **settings)
    reward.backbone.detector.double()
    reward.backbone.dtype = torch.float64
    x_BCHW = (0.3 + 0.4 * images(2, 40, 40).double()).requires_grad_(True)
    (gradient_BCHW,) = torch.autograd.grad(reward.scores(x_BCHW).sum(), x_BCHW)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _ in range(5):
            d_BCHW = torch.randn(x_BCHW.shape, generator=generator, dtype=torch.float64)
            up, down = (reward.scores(x_BCHW + h * d_BCHW).sum().item() for h in (1e-5, -1e-5))
            along = (gradient_BCHW * d_BCHW).sum().item()
            assert (up - down) / 2e-5 == pytest.approx(along, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("kind", DETECTORS)
def test_half_precision_is_within_a_hundredth(kind: str, tmp_path: Path) -> None:
    """An fp16 image network gives fp32 scores within 1 % of those of an fp32 one."""
    full, _ = make(kind, tmp_path / "model", precision="fp32")
    half, _ = make(kind, tmp_path / "model", precision="fp16")
    dtypes = {name.split(".")[0]: p.dtype for name, p in half.backbone.detector.named_parameters()}
    assert dtypes["class_head"] == torch.float32 and dtypes["layer_norm"] == torch.float16
    expected, half_scores = full(images(6), [""] * 6), half(images(6), [""] * 6)
    assert (half_scores - expected).abs().max() <= 1e-2 * expected.abs().max()


@pytest.mark.parametrize("settings", MODES)
def test_chunks_do_not_matter(settings: dict, tmp_path: Path) -> None:
    """8 images in chunks of 1, 2 and 8 have the same scores to 1e-6."""
    reward, _ = make("owlv2", tmp_path / "model", **settings)
    whole = score(reward, images(8), [""] * 8, chunk=8, name="cat")
    for chunk in (1, 2):
        chunked_scores = score(reward, images(8), [""] * 8, chunk=chunk, name="cat")
        torch.testing.assert_close(chunked_scores, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", DETECTORS)
def test_checkpointing_keeps_the_gradient(kind: str, tmp_path: Path) -> None:
    """The same gradient bits, each layer run twice: once for its value, once in the backward."""
    gradients, calls = [], []
    for checkpointing in (False, True):
        reward, _ = make(kind, tmp_path / "model", checkpointing=checkpointing)
        core: Any = reward.backbone.detector.owlv2 if kind == "owlv2" else reward.backbone.detector.owlvit
        layer = core.vision_model.encoder.layers[0]
        (layer.layer if checkpointing else layer).layer_norm1.register_forward_hook(lambda *_: calls.append(1))
        x_BCHW = images(2).requires_grad_(True)
        gradients.append(torch.autograd.grad(reward(x_BCHW, ["", ""]).sum(), x_BCHW)[0])
    assert torch.equal(*gradients) and len(calls) == 3


@pytest.mark.parametrize("settings", MODES)
def test_it_runs_on_fake_tensors(settings: dict, tmp_path: Path) -> None:
    """A plan can run it: no branch depends on the data, suppression included."""
    reward, _ = make("owlv2", tmp_path / "model", **settings)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert reward(torch.rand(2, 3, 40, 40), ["", ""]).shape == (2,)


def test_the_text_network_is_not_kept(tmp_path: Path) -> None:
    """The object's embedding is made once; what stays on the device is the image network and the heads."""
    reward, model = make("owlvit", tmp_path / "model")
    names = {name for name, _ in reward.backbone.detector.named_parameters()}
    assert not any(name.startswith("owlvit.text") for name in names)
    assert not any(p.requires_grad for network in reward.networks for p in network.parameters())
    assert sum(1 for name, _ in model.named_parameters() if name.startswith("owlvit.text")) > 10


def test_overlap_by_hand() -> None:
    """Unit squares (centre, size) 0.5 apart share half: 0.5 / (1 + 1 - 0.5) = 1/3; apart: 0; with itself: 1."""
    boxes_BN4 = torch.tensor([[[0.0, 0, 1, 1], [0.5, 0, 1, 1], [5.0, 5, 1, 1]]])
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    assert torch.allclose(intersection_over_union(boxes_BN4)[0], torch.tensor(expected))


def test_repeats_are_suppressed_by_what_is_kept_alone() -> None:
    """Squares at 0, 0.3, 0.6: neighbours overlap by 0.7/1.3 = 0.54, the ends by 0.4/1.6 = 0.25. The middle one repeats
    the first and goes; the last is compared with the first alone, and stays. A box of no area repeats nothing."""
    boxes_BN4 = torch.tensor([[[0.0, 0, 1, 1], [0.3, 0, 1, 1], [0.6, 0, 1, 1], [0.0, 0, 0, 0]]])
    assert separate(boxes_BN4).tolist() == [[1, 0, 1, 1]]


def test_counting_by_hand() -> None:
    """Threshold 0.5 is logit 0, temperature 0.5. Logits 5, 4, 0, -5 at four places, the second a repeat of the first:
    sigmoid(10) + sigmoid(0) + sigmoid(-10) = 1.5."""
    logits_BP = torch.tensor([[0.0, 5.0, -5.0, 4.0]])
    boxes_BP4 = torch.tensor(
        [[[0.2, 0.2, 0.1, 0.1], [0.6, 0.6, 0.2, 0.2], [0.9, 0.1, 0.1, 0.1], [0.61, 0.6, 0.2, 0.2]]]
    )
    assert soft_count(logits_BP, boxes_BP4, 0.5).tolist() == pytest.approx([1.5], abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 70), (20, 20)])
def test_preprocessing_is_the_processors_own(height: int, width: int, tmp_path: Path) -> None:
    """OWL-ViT against transformers' PIL processor, to 8-bit rounding, on noise of half the contrast (PIL saturates
    between its passes)."""
    reward, _ = make("owlvit", tmp_path / "model")
    pixels_HWC = (64 + 128 * images(1, height, width)[0]).permute(1, 2, 0).to(torch.uint8)
    processor = OwlViTImageProcessorPil(size={"height": 32, "width": 32})
    expected: Any = processor(Image.fromarray(pixels_HWC.numpy()), return_tensors="pt")
    pixels = reward.backbone.pixels(pixels_HWC.permute(2, 0, 1)[None].float() / 255)
    assert (pixels - expected["pixel_values"]).abs().max() <= 1.5 / 255 / min(CLIP_STD)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (18, 24)])
def test_owlv2_pads_below_and_right(height: int, width: int, tmp_path: Path) -> None:
    """Enlarged (512 -> 960 is the usual case): equal to transformers' processor away from the image's edges, where that
    one mirrors and this one repeats."""
    reward, _ = make("owlv2", tmp_path / "model")
    image_CHW = images(1, height, width)[0]
    processor = Owlv2ImageProcessorPil(size={"height": 32, "width": 32}, do_rescale=False)
    expected: Any = processor(
        [image_CHW.numpy().astype(np.float32)], return_tensors="pt", input_data_format="channels_first"
    )
    pixels = reward.backbone.pixels(image_CHW[None])
    assert pixels.shape == (1, 3, 32, 32)
    difference = (pixels - expected["pixel_values"])[..., 1:-1, 1:-1].abs()
    assert difference.max() <= 1e-4


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 64), "safetensors"),
        (lambda f: (f / "config.json").write_text('{"model_type": "detr"}'), "owlvit or owlv2"),
        (
            lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace("owlvit", "owlv2")),
            "owlv2|Owlv2",
        ),
        (lambda f: (f / "vocab.json").write_text("{"), "tokenizer"),
    ],
)
def test_damaged_or_wrong_folders_are_one_line(spoil: Any, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write("owlvit", folder)
    spoil(folder)
    with pytest.raises(ConfigError, match=reason) as caught:
        load_detection(DetectionConfig(kind="detection", path=str(folder), object="a cat"), CPU)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_nothing_in_a_weight_file_is_executed(tmp_path: Path) -> None:
    """A pytorch_model.bin that would create a file is refused, and the file is not there."""
    folder, marker = tmp_path / "model", tmp_path / "executed"
    write("owlvit", folder)
    (folder / "model.safetensors").unlink()
    write_trap(folder / "pytorch_model.bin", marker)
    with pytest.raises(ConfigError, match="nothing in it was run"):
        load_detection(DetectionConfig(kind="detection", path=str(folder), object="a cat"), CPU)
    assert not marker.exists()


def test_too_many_words_are_refused(tmp_path: Path) -> None:
    """OWL-ViT's text network has 16 places; cutting the words silently would look for another object."""
    write("owlvit", tmp_path / "model")
    part = DetectionConfig(kind="detection", path=str(tmp_path / "model"), object=" ".join(["cat"] * 20))
    with pytest.raises(ConfigError, match="at most 14 word pieces, got 20"):
        load_detection(part, CPU)
