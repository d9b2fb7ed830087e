"""Promises of the rewards on CLIP: aesthetic, PickScore, HPSv2, plain similarity.

Shapes: B images, C channels, H W pixels, S the network's side, D of the embeddings.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from memdiff.errors import ConfigError, MemdiffError, RewardError
from memdiff.rewards.clip import ClipReward, fit_square, load_clip
from memdiff.rewards.clip_heads import PromptHead
from memdiff.rewards.config import RewardPart
from memdiff.rewards.families_config import AestheticConfig, ClipSimilarityConfig, HpsConfig, PickScoreConfig
from memdiff.rewards.preprocess import CLIP_MEAN, CLIP_STD
from memdiff.rewards.score import score
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces
from tests.helpers.processes import run_python
from tests.helpers.reward_models import (
    OpenClip,
    aesthetic_weights,
    ids_by_hand,
    tiny_clip_config,
    tiny_open_clip,
    write_clip,
    write_hps,
    write_trap,
)

CPU = torch.device("cpu")
KINDS = ("aesthetic", "pickscore", "hpsv2", "clip_similarity")
TEXTS = ("cat", "dog cat", "a cat", "a dog", "dog", "cat cat cat", "b c", "dog dog")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(count: int, side: int = 32, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def make(kind: str, folder: Path, **settings: Any) -> tuple[ClipReward, Callable[[torch.Tensor, Sequence[str]], list]]:
    """A tiny reward of a kind, and its truth: images at the network's own size and prompts -> list of B numbers."""
    if kind == "hpsv2":
        open_clip = tiny_open_clip()
        write_hps(folder, open_clip)
        return load_clip(HpsConfig(kind="hpsv2", path=str(folder), **settings), CPU), truth_open_clip(open_clip)
    model = write_clip(folder, tiny_clip_config())
    if kind == "aesthetic":
        weights = aesthetic_weights(24)
        torch.save(weights, folder / "head.pth")
        part = AestheticConfig(kind="aesthetic", path=str(folder), head=str(folder / "head.pth"), **settings)
        return load_clip(part, CPU), truth_aesthetic(model, weights)
    if kind == "pickscore":
        part = PickScoreConfig(kind="pickscore", path=str(folder), **settings)
        return load_clip(part, CPU), truth_clip(model, scaled=True)
    part = ClipSimilarityConfig(kind="clip_similarity", path=str(folder), **settings)
    return load_clip(part, CPU), truth_clip(model, scaled=False)


def standardised(images_BCHW: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return (images_BCHW - mean[:, None, None]) / std[:, None, None]


def truth_clip(model: CLIPModel, *, scaled: bool) -> Callable[[torch.Tensor, Sequence[str]], list]:
    """transformers' own forward of the whole model, one image and one prompt at a time; ids by hand."""

    @torch.no_grad()
    def scores(images_BCHW: torch.Tensor, prompts: Sequence[str]) -> list:
        similarities = []
        for image_CHW, prompt in zip(standardised(images_BCHW), prompts, strict=True):
            ids = torch.tensor([ids_by_hand(prompt, model.text_model.config.vocab_size)])
            logit = model(input_ids=ids, pixel_values=image_CHW[None]).logits_per_image.item()
            similarities.append(logit if scaled else logit / model.logit_scale.exp().item())
        return similarities

    return scores


def truth_aesthetic(model: CLIPModel, weights: dict) -> Callable[[torch.Tensor, Sequence[str]], list]:
    """The image embedding by transformers, then e / |e| and five matrix products in numpy's fp64."""

    @torch.no_grad()
    def scores(images_BCHW: torch.Tensor, prompts: Sequence[str]) -> list:
        output: Any = model.get_image_features(pixel_values=standardised(images_BCHW))
        h_BD = output.pooler_output.double().numpy()
        h_BD = h_BD / np.sqrt((h_BD**2).sum(axis=1, keepdims=True))
        for number in (0, 2, 4, 6, 7):
            weight, bias = weights[f"layers.{number}.weight"], weights[f"layers.{number}.bias"]
            h_BD = h_BD @ weight.double().numpy().T + bias.double().numpy()
        return h_BD[:, 0].tolist()

    return scores


def truth_open_clip(model: OpenClip) -> Callable[[torch.Tensor, Sequence[str]], list]:
    @torch.no_grad()
    def scores(images_BCHW: torch.Tensor, prompts: Sequence[str]) -> list:
        e_BD = model.visual(standardised(images_BCHW))
        vocabulary = model.token_embedding.num_embeddings
        t_BD = torch.cat([model.encode_text(ids_by_hand(prompt, vocabulary)) for prompt in prompts])
        return ((e_BD * t_BD).sum(dim=1) / (e_BD.norm(dim=1) * t_BD.norm(dim=1))).tolist()

    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_an_independent_computation(kind: str, tmp_path: Path) -> None:
    """Weights in the published file format give what transformers' whole model, or open_clip's forward, gives."""
    reward, truth = make(kind, tmp_path / "model")
    scores = reward(images(8), TEXTS)
    assert scores.dtype == torch.float32 and scores.shape == (8,)
    assert scores.tolist() == pytest.approx(truth(images(8), TEXTS), abs=1e-5)
    assert scores.std() > 1e-3  # the images and prompts do matter


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind: str, tmp_path: Path) -> None:
    """In fp64, through the resize from 40 to 32 pixels: grad . d = (f(x + h d) - f(x - h d)) / 2h for random d."""
    reward, _ = make(kind, tmp_path / "model")
    reward.backbone.network.double()
    reward.backbone.dtype = torch.float64
    if isinstance(reward._head, torch.nn.Module):
        reward._head.double()
    x_BCHW = (0.3 + 0.4 * images(2, 40).double()).requires_grad_(True)
    (gradient_BCHW,) = torch.autograd.grad(reward.scores(x_BCHW, TEXTS[:2]).sum(), x_BCHW)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _ in range(5):
            d_BCHW = torch.randn(x_BCHW.shape, generator=generator, dtype=torch.float64)
            up, down = (reward.scores(x_BCHW + h * d_BCHW, TEXTS[:2]).sum().item() for h in (1e-4, -1e-4))
            along = (gradient_BCHW * d_BCHW).sum().item()
            assert (up - down) / 2e-4 == pytest.approx(along, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_within_a_hundredth(kind: str, tmp_path: Path) -> None:
    """An fp16 network gives fp32 scores within 1 % of those of an fp32 network (of the largest of the batch)."""
    full, _ = make(kind, tmp_path / "model", precision="fp32")
    half, _ = make(kind, tmp_path / "model", precision="fp16")
    assert next(half.networks[0].parameters()).dtype == torch.float16
    expected, half_scores = full(images(8), TEXTS), half(images(8), TEXTS)
    assert half_scores.dtype == torch.float32
    assert (half_scores - expected).abs().max() <= 1e-2 * expected.abs().max()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gradients_do_not_underflow(kind: str, checkpointing: bool, tmp_path: Path) -> None:
    """Pulled as a piece with a tiny costate (1e-9, below fp16's smallest number), the fp16 gradient is within 2 % of
    the fp32 one in norm."""
    gradients = {}
    for precision in ("fp32", "fp16"):
        reward, _ = make(kind, tmp_path / "model", precision=precision, checkpointing=checkpointing)
        pieces = Pieces(Gradients([]))
        y_B, pull = pieces.vjp(lambda x, r=reward: r(x, TEXTS[:2]), images(2).requires_grad_(True))
        gradients[precision] = pull(torch.full_like(y_B, 1e-9))
    difference = gradients["fp16"] - gradients["fp32"]
    assert difference.norm() <= 2e-2 * gradients["fp32"].norm()


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_do_not_matter(kind: str, tmp_path: Path) -> None:
    """8 images in chunks of 1, 2 and 8 have the same scores to 1e-6."""
    reward, _ = make(kind, tmp_path / "model")
    whole = score(reward, images(8), TEXTS, chunk=8, name=kind)
    for chunk in (1, 2):
        torch.testing.assert_close(score(reward, images(8), TEXTS, chunk=chunk, name=kind), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_keeps_the_gradient_and_saves_memory(kind: str, tmp_path: Path) -> None:
    """Non-reentrant recomputation in evaluation mode: the same gradient bits from less than half the kept bytes."""

    def gradient_and_kept_bytes(*, checkpointing: bool) -> tuple[torch.Tensor, int]:
        reward, _ = make(kind, tmp_path / "model", checkpointing=checkpointing)
        x_BCHW = images(2).requires_grad_(True)
        weights = {p.untyped_storage().data_ptr() for network in reward.networks for p in network.parameters()}
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            if tensor.untyped_storage().data_ptr() not in weights:
                kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = reward(x_BCHW, TEXTS[:2]).sum()
        return torch.autograd.grad(total, x_BCHW)[0], kept

    plain, bytes_plain = gradient_and_kept_bytes(checkpointing=False)
    again, bytes_again = gradient_and_kept_bytes(checkpointing=True)
    assert torch.equal(plain, again)
    assert bytes_again < bytes_plain / 2


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_frozen_and_runs_on_fake_tensors(kind: str, tmp_path: Path) -> None:
    """No parameter takes a gradient; a plan can run the reward on fake tensors, new prompts included."""
    reward, _ = make(kind, tmp_path / "model")
    assert not any(p.requires_grad for network in reward.networks for p in network.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert reward(torch.rand(2, 3, 64, 64), ("cat", "a dog")).shape == (2,)
    assert reward(images(2), ("cat", "a dog")).isfinite().all()


def test_the_scale_by_hand(tmp_path: Path) -> None:
    """PickScore is exp(logit_scale) times the cosine, similarity the cosine alone: exp(2.6592) = 14.285."""
    scaled, _ = make("pickscore", tmp_path / "model")
    plain, _ = make("clip_similarity", tmp_path / "model")
    ratio = scaled(images(4), TEXTS[:4]) / plain(images(4), TEXTS[:4])
    assert ratio.tolist() == pytest.approx([14.2849] * 4, rel=1e-4)


def test_grey_images_count_as_three_equal_channels(tmp_path: Path) -> None:
    reward, _ = make("clip_similarity", tmp_path / "model")
    grey_B1HW = images(2)[:, :1]
    assert torch.equal(reward(grey_B1HW, TEXTS[:2]), reward(grey_B1HW.repeat(1, 3, 1, 1), TEXTS[:2]))


def test_a_prompt_is_encoded_once_and_alone(tmp_path: Path) -> None:
    """The text network runs once for each different prompt, however often it comes back."""
    reward, _ = make("pickscore", tmp_path / "model")
    head = reward._head
    assert isinstance(head, PromptHead)
    calls = []
    head.text.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        reward(images(4), ("cat", "dog", "cat", "cat"))
    assert len(calls) == 2


def test_a_fixed_prompt_replaces_the_images_own(tmp_path: Path) -> None:
    fixed, _ = make("clip_similarity", tmp_path / "model", prompt="a dog")
    free, _ = make("clip_similarity", tmp_path / "model")
    assert torch.equal(fixed(images(3), ("cat", "", "b")), free(images(3), ("a dog",) * 3))


def test_long_prompts_are_cut_and_keep_their_end_mark(tmp_path: Path) -> None:
    """16 positions: 14 words and both marks. 30 cats score as 14 cats do."""
    reward, _ = make("clip_similarity", tmp_path / "model")
    assert torch.equal(reward(images(1), (" ".join(["cat"] * 30),)), reward(images(1), (" ".join(["cat"] * 14),)))


@pytest.mark.parametrize("prompts", [("cat", ""), ("cat", "  "), ("cat",)])
def test_a_missing_prompt_is_one_line(prompts: tuple[str, ...], tmp_path: Path) -> None:
    reward, _ = make("pickscore", tmp_path / "model")
    with pytest.raises(RewardError, match=r"reward pickscore .*prompt") as caught:
        reward(images(2), prompts)
    assert "\n" not in str(caught.value)


def test_old_position_ids_and_pickled_weights_are_read(tmp_path: Path) -> None:
    """Older folders hold pytorch_model.bin with position_ids in it; the scores are those of the safetensors."""
    new, _ = make("pickscore", tmp_path / "model")
    old = tmp_path / "old"
    model = write_clip(old, tiny_clip_config())
    positions = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
    torch.save(model.state_dict() | positions, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    read = load_clip(PickScoreConfig(kind="pickscore", path=str(old)), CPU)
    torch.testing.assert_close(read(images(4), TEXTS[:4]), new(images(4), TEXTS[:4]), rtol=1e-6, atol=1e-6)


def test_hps_reads_a_transformers_folder_too(tmp_path: Path) -> None:
    """format: transformers takes a converted CLIPModel; the score stays the bare cosine."""
    model = write_clip(tmp_path / "model", tiny_clip_config())
    part = HpsConfig(kind="hpsv2", path=str(tmp_path / "model"), format="transformers")
    scores = load_clip(part, CPU)(images(3), TEXTS[:3])
    assert scores.tolist() == pytest.approx(truth_clip(model, scaled=False)(images(3), TEXTS[:3]), abs=1e-5)


def test_both_hps_versions_are_found_by_name(tmp_path: Path) -> None:
    for version, seed in (("2.0", 3), ("2.1", 4)):
        write_hps(tmp_path / "model", tiny_open_clip(seed), version=version)
    for version, seed in (("2.0", 3), ("2.1", 4)):
        part: Any = {"kind": "hpsv2", "path": str(tmp_path / "model"), "version": version}
        scores = load_clip(HpsConfig(**part), CPU)(images(2), TEXTS[:2])
        assert scores.tolist() == pytest.approx(truth_open_clip(tiny_open_clip(seed))(images(2), TEXTS[:2]), abs=1e-5)


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(64, 192, (height, width, 3), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 70), (90, 41), (20, 20)])
def test_cropping_is_clips_own(height: int, width: int) -> None:
    """Against transformers' PIL processor: shortest edge to 32, centre cut; up to 8-bit rounding (1.5 of 255).

    Noise of half the contrast: at full contrast PIL saturates between its two passes too, which no tensor resize does.
    """
    pixels_HWC = noise(height, width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    expected: Any = processor(Image.fromarray(pixels_HWC.numpy()), return_tensors="pt", do_normalize=False)
    pixels = fit_square(pixels_HWC.permute(2, 0, 1)[None].float() / 255, 32, "crop")
    assert pixels.shape == (1, 3, 32, 32)
    assert (pixels - expected["pixel_values"]).abs().max() <= 1.5 / 255


def test_padding_is_hpsv2s_own() -> None:
    """hpsv2's ResizeMaxSize: 40 x 64 -> 20 x 32, then 6 black rows above and 6 below; the rest as PIL resizes it."""
    pixels_HWC = noise(40, 64)
    resized = Image.fromarray(pixels_HWC.numpy()).resize((32, 20), Image.Resampling.BICUBIC)
    pixels = fit_square(pixels_HWC.permute(2, 0, 1)[None].float() / 255, 32, "pad")[0]
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, :6].abs().max() == 0 and pixels[:, 26:].abs().max() == 0
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    assert (pixels[:, 6:26] - expected).abs().max() <= 1.5 / 255


def _part(settings: dict) -> Any:
    return TypeAdapter(RewardPart).validate_python(settings)


def _load(kind: str, folder: Path) -> ClipReward:
    settings = {"kind": kind, "path": str(folder)} | ({"head": str(folder / "head.pth")} if kind == "aesthetic" else {})
    return load_clip(_part(settings), CPU)


def _damages() -> dict[str, tuple[str, Callable[[Path], object]]]:
    def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))

    def other_config(folder: Path) -> object:
        values = json.loads((folder / "config.json").read_text())
        return (folder / "config.json").write_text(json.dumps(values | {"model_type": "bert"}))

    def wider(folder: Path) -> object:
        values = json.loads((folder / "config.json").read_text())
        values["vision_config"]["intermediate_size"] = 256
        return (folder / "config.json").write_text(json.dumps(values))

    half = rewrite("model.safetensors", lambda data: data[: len(data) // 2])
    hps = "HPS_v2.1_compressed.pt"
    return {
        "safetensors cut": ("pickscore", half),
        "safetensors empty": ("clip_similarity", rewrite("model.safetensors", lambda _: b"")),
        "safetensors missing": ("clip_similarity", lambda folder: (folder / "model.safetensors").unlink()),
        "config cut": ("pickscore", rewrite("config.json", lambda data: data[: len(data) // 2])),
        "config a list": ("pickscore", rewrite("config.json", lambda _: b"[1]")),
        "config nonsense": ("pickscore", rewrite("config.json", lambda _: b'{"model_type":"clip","vision_config":7}')),
        "config of bert": ("pickscore", other_config),
        "config of another width": ("pickscore", wider),
        "tokenizer cut": ("pickscore", rewrite("vocab.json", lambda data: data[: len(data) // 2])),
        "merges missing": ("clip_similarity", lambda folder: (folder / "merges.txt").unlink()),
        "head cut": ("aesthetic", rewrite("head.pth", lambda data: data[: len(data) // 2])),
        "head of another width": ("aesthetic", lambda f: torch.save(aesthetic_weights(768), f / "head.pth")),
        "head with a key too many": (
            "aesthetic",
            lambda f: torch.save(aesthetic_weights(24) | {"more": torch.ones(1)}, f / "head.pth"),
        ),
        "hps cut": ("hpsv2", rewrite(hps, lambda data: data[: len(data) // 2])),
        "hps of another model": ("hpsv2", lambda f: torch.save(aesthetic_weights(24), f / hps)),
        "hps of ViT-L": (
            "hpsv2",
            lambda f: torch.save(
                OpenClip(
                    side=32, patch=8, vision=(128, 1, 2), text=(64, 1, 1), embed=8, vocabulary=9, context=8
                ).state_dict(),
                f / hps,
            ),
        ),
        "hps with a block too few": (
            "hpsv2",
            lambda f: torch.save(
                {k: v for k, v in tiny_open_clip().state_dict().items() if "resblocks.1.ln_1" not in k}, f / hps
            ),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("damage", _damages())
def test_damaged_or_wrong_files_are_one_line(damage: str, tmp_path: Path) -> None:
    """Cut, empty, missing and foreign files: a ConfigError in one line that names the folder."""
    kind, spoil = _damages()[damage]
    folder = tmp_path / "model"
    make(kind, folder)
    spoil(folder)
    with pytest.raises(ConfigError) as caught:
        _load(kind, folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("kind", "name"),
    [("aesthetic", "head.pth"), ("hpsv2", "HPS_v2.1_compressed.pt"), ("pickscore", "pytorch_model.bin")],
)
def test_nothing_in_a_weight_file_is_executed(kind: str, name: str, tmp_path: Path) -> None:
    """A pickle that would create a file is refused in one line, and the file is not there."""
    folder, marker = tmp_path / "model", tmp_path / "executed"
    make(kind, folder)
    (folder / "model.safetensors").unlink(missing_ok=name != "pytorch_model.bin")
    if kind == "aesthetic":
        write_clip(folder, tiny_clip_config())
    write_trap(folder / name, marker)
    with pytest.raises(ConfigError, match=name) as caught:
        _load(kind, folder)
    assert "\n" not in str(caught.value) and not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_hub_is_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the default ids end in one line with the command that fetches them."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    part = _part({"kind": kind})
    with pytest.raises(MemdiffError, match=rf"hf download {part.path}") as caught:
        load_clip(part, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "pickscore", "path": "./nowhere"},
        {"kind": "pickscore", "wieght": 2},
        {"kind": "hpsv2", "version": "3"},
        {"kind": "aesthetic", "precision": "fp8"},
        {"kind": "clip_similarity", "prompt": ""},
        {"kind": "detection"},
        {"kind": "detection", "object": "cat", "count": 2},
        {"kind": "detection", "object": "cat", "mode": "count"},
        {"kind": "jpeg", "quality": 0},
    ],
)
def test_mistakes_in_a_recipe_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        _part(settings)


def test_the_recipe_sections_import_no_torch() -> None:
    """A recipe with these kinds is validated before torch is loaded."""
    code = "import sys, memdiff.rewards.families_config; assert not {'torch', 'transformers'} & set(sys.modules)"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_no_torchvision_is_needed() -> None:
    """Everything imports where there is none."""
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import memdiff.rewards.clip, memdiff.rewards.detection, memdiff.rewards.jpeg, memdiff.scoring.images\n"
        "assert sys.modules['torchvision'] is None"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def _full_text(layers: int, width: int, heads: int, act: str) -> dict[str, Any]:
    return {
        "vocab_size": 49408, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": 77,
        "hidden_act": act,
    }  # fmt: skip


def _full_vision(layers: int, width: int, inner: int, heads: int, act: str) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "image_size": 224, "patch_size": 14, "hidden_act": act,
    }  # fmt: skip


@pytest.mark.slow
def test_aesthetic_at_full_size(tmp_path: Path) -> None:
    """CLIP ViT-L/14 (427.6 M parameters, fp32 file) and the 768-wide head, 256 x 256 images; <= 1e-4 from the truth."""
    config = CLIPConfig(
        text_config=_full_text(12, 768, 12, "quick_gelu"),
        vision_config=_full_vision(24, 1024, 4096, 16, "quick_gelu"),
        projection_dim=768,
    )
    folder = tmp_path / "model"
    model = write_clip(folder, config)
    weights = aesthetic_weights(768)
    torch.save(weights, folder / "head.pth")
    reward = _load("aesthetic", folder)
    expected = truth_aesthetic(model, weights)(fit_square(images(2, 256), 224, "crop"), ("", ""))
    assert reward(images(2, 256), ("", "")).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_pickscore_at_full_size(tmp_path: Path) -> None:
    """CLIP ViT-H/14 (986.1 M parameters, fp16 file, run in fp32); <= 1e-4 from transformers' own forward."""
    config = CLIPConfig(
        text_config=_full_text(24, 1024, 16, "gelu"), vision_config=_full_vision(32, 1280, 5120, 16, "gelu"),
        projection_dim=1024,
    )  # fmt: skip
    folder = tmp_path / "model"
    write_clip(folder, config, dtype=torch.float16)
    scores = _load("pickscore", folder)(images(2, 256), TEXTS[:2]).tolist()
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(986.1e6, rel=1e-4)
    expected = truth_clip(model, scaled=True)(fit_square(images(2, 256), 224, "crop"), TEXTS[:2])
    assert scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_hpsv2_at_full_size(tmp_path: Path) -> None:
    """open_clip ViT-H-14 (986.1 M parameters, fp16 .pt, run in fp32); <= 1e-4 from open_clip's own forward."""
    torch.manual_seed(0)
    model = OpenClip(
        side=224, patch=14, vision=(1280, 32, 16), text=(1024, 24, 16), embed=1024, vocabulary=49408, context=77
    ).eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(986.1e6, rel=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # what the file can hold
    write_hps(tmp_path / "model", model, dtype=torch.float16)
    expected = truth_open_clip(model)(fit_square(images(2, 256), 224, "crop"), TEXTS[:2])
    del model
    scores = _load("hpsv2", tmp_path / "model")(images(2, 256), TEXTS[:2])
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)
