"""The embedded text-to-image model: prompts, tokenizer, folder, samples, and the card that describes them."""

# Shapes: N images, C channels, H W pixels (32 x 32).

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.embedded_models import build_text, measure_text, text_model, text_training
from benchmarks.embedded_models.measure_text import Drawing
from benchmarks.embedded_models.text_data import INK, PAPER, styled
from benchmarks.embedded_models.text_prompts import (
    EMPTY_SHARE,
    NO_DIGIT_SHARE,
    PROMPTS,
    STYLE_WORDS,
    STYLES,
    WORDS,
    draw_prompts,
    prompt_for,
)
from benchmarks.embedded_models.training import Settings
from memdiff.digits.classifiers import load_classifier
from memdiff.digits.paths import DIGITS_TEXT
from memdiff.digits.scans import real_digits

ROOM = DIGITS_TEXT.parent
CARD = json.loads((ROOM / "card_text.json").read_text(encoding="utf-8"))
PARTS = ("vae", "text_encoder", "unet")


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return measure_text.load_text(DIGITS_TEXT)


@pytest.fixture(scope="module")
def samples_60(pipeline: StableDiffusionPipeline) -> Tensor:
    """Two of each digit and style at guidance 5, 20 steps."""
    return measure_text.draw_pictures(pipeline, measure_text.wishes(2)[0], Drawing(guidance=5.0, steps=20))


def test_the_plainest_prompts():
    assert [prompt_for(3), prompt_for(7, "thin"), prompt_for(2, "thick")] == ["three", "a thin seven", "a thick two"]
    assert len(set(PROMPTS)) == 30 and PROMPTS[10] == "zero"


def test_training_prompts_name_what_the_picture_shows():
    """Of 4,000 prompts for thin threes: 10 % empty; of the rest 95 % name a three and none another digit or style.

    Three binomial standard deviations: 3 sqrt(0.1 * 0.9 / 4000) = 1.4 %.
    """
    prompts = [text.split() for text in draw_prompts([3] * 4000, ["thin" for _ in range(4000)], Random(0))]
    spoken = [words for words in prompts if words]
    assert 1 - len(spoken) / len(prompts) == pytest.approx(EMPTY_SHARE, abs=0.015)
    named = sum("three" in words or "3" in words for words in spoken) / len(spoken)
    assert named == pytest.approx(1 - NO_DIGIT_SHARE, abs=0.015)
    others = {*WORDS[:20], *STYLE_WORDS["plain"], *STYLE_WORDS["thick"]} - {"three", "3"}
    assert not any(others & {*words} for words in spoken)
    assert all({*STYLE_WORDS["thin"]} & {*words} for words in spoken)


def test_every_word_is_one_token_of_its_own(pipeline: StableDiffusionPipeline):
    """Between the opening and the closing token; a word in capitals is the same word."""
    ids = pipeline.tokenizer(list(WORDS)).input_ids
    assert all(len(row) == 3 for row in ids)
    assert len({row[1] for row in ids}) == len(WORDS) >= 90
    assert pipeline.tokenizer(["A Thin SEVEN"]).input_ids == pipeline.tokenizer(["a thin seven"]).input_ids


def test_the_loaded_tokenizer_is_the_one_trained_with(pipeline: StableDiffusionPipeline):
    """transformers rebuilds it from the saved vocabulary: ids of known, unknown and foreign words stay the same."""
    texts = [*PROMPTS, *(text for text, _ in measure_text.FREE_PROMPTS), "", "photorealistic café 37, {}", "数字"]
    fresh, loaded = text_model.new_tokenizer(), pipeline.tokenizer
    assert torch.equal(text_training.token_ids(fresh, texts), text_training.token_ids(loaded, texts))
    assert text_training.token_ids(loaded, texts).shape == (len(texts), text_model.MAX_TOKENS)
    unknown = loaded.convert_tokens_to_ids(text_model.UNKNOWN)
    assert unknown == loaded.unk_token_id and unknown in loaded(["数字"]).input_ids[0]
    assert unknown not in loaded(["photorealistic"]).input_ids[0]


def test_merges_by_hand():
    """Of aab, ab the pair a+b</w> occurs twice, then a+ab</w> once; of ab, ba each once: the first in the alphabet."""
    assert text_model.learn_merges(["aab", "ab"]) == [("a", "b</w>"), ("a", "ab</w>")]
    assert text_model.learn_merges(["ba", "ab"]) == [("a", "b</w>"), ("b", "a</w>")]
    assert text_model.learn_merges(["aaa", "7"]) == [("a", "a"), ("aa", "a</w>")]


def test_thickness_orders_the_ink_of_every_digit():
    """A lower edge level inks every pixel more, to within PAPER and INK; where a scan is 0 or 1, by hand:

    thick paper 0.05 + 0.9 (0.5 - 0.37 / 0.8) = 0.08375, thin ink 0.05 + 0.9 (0.5 + 0.37 / 0.8) = 0.91625.
    """
    images, _ = real_digits("held_out")
    thin, plain, thick = (styled(images, style) for style in STYLES)
    assert (thin <= plain).all() and (plain <= thick).all()
    assert (thin.mean(dim=(1, 2, 3)) < plain.mean(dim=(1, 2, 3))).all()
    assert float(plain.min()) == pytest.approx(PAPER) and float(plain.max()) == pytest.approx(INK)
    assert float(thick.min()) == pytest.approx(0.08375) and float(thin.max()) == pytest.approx(0.91625)
    assert thin.shape == (360, 3, 32, 32) and torch.equal(thin[:, 0], thin[:, 2])
    assert torch.equal(styled(images[:2], ["thin", "thick"]), torch.stack([thin[0], thick[1]]))


def test_the_folder_is_a_small_stable_diffusion_pipeline(pipeline: StableDiffusionPipeline):
    """fp16 on disk, float32 as loaded without a word about dtypes, 32 x 32, no safety checker, 6 MB in all."""
    files = [path for path in DIGITS_TEXT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    assert {str(path.relative_to(ROOM)): path.stat().st_size for path in files if path.suffix == ".safetensors"} == (
        CARD["bytes"]
    )
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)
    assert type(pipeline) is StableDiffusionPipeline and pipeline.safety_checker is None
    assert pipeline.config["requires_safety_checker"] is False
    assert {part: getattr(pipeline, part).dtype for part in PARTS} == dict.fromkeys(PARTS, torch.float32)
    counts = {part: sum(p.numel() for p in getattr(pipeline, part).parameters()) for part in PARTS}
    assert counts == CARD["parameters"]
    assert pipeline.vae_scale_factor == 4 and pipeline.unet.config["sample_size"] == 8
    scheduler = pipeline.scheduler.config
    assert (scheduler["beta_start"], scheduler["beta_end"], scheduler["steps_offset"]) == (0.00085, 0.012, 1)
    assert not scheduler["clip_sample"] and not scheduler["set_alpha_to_one"]


def test_the_autoencoder_returns_held_out_pictures_and_passes_gradients(pipeline: StableDiffusionPipeline):
    """rms error under 0.05 of 0..1, unit latents to a third, and a clamp to 0..1 stops at most 2 % of the pixels."""
    figures = measure_text.autoencoding(pipeline, text_training.TEXT)
    assert figures == pytest.approx(CARD["autoencoding"], abs=2e-3)
    assert figures["rms_error"] < 0.05 and figures["inside"] > 0.98
    assert 0.67 < figures["latent_std"] < 1.1


def test_the_decoder_clamp_included_has_gradients_of_the_ink(pipeline: StableDiffusionPipeline):
    """d ink / d latent of a real picture's latent agrees with a central difference along itself (float32: 2 %)."""
    picture = 2.0 * styled(real_digits("held_out")[0][:1], "plain") - 1.0
    latent = text_training.posterior(pipeline.vae, picture).mode().detach().requires_grad_()

    def ink(value: Tensor) -> Tensor:
        return ((text_training.decode(pipeline.vae, value) + 1.0) / 2.0).clamp(0.0, 1.0).mean()

    (gradient,) = torch.autograd.grad(ink(latent), latent)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        slope = (ink(latent + 0.05 * direction) - ink(latent - 0.05 * direction)) / 0.1
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.02)


def test_samples_are_recognised_and_as_thick_as_asked(samples_60: Tensor):
    """At least 90 % of 60 named rightly by both classifiers; thin, plain and thick keep their order by a margin."""
    _, digits, styles = measure_text.wishes(2)
    assert samples_60.shape == (60, 3, 32, 32)
    for which in ("judge", "reward"):
        assert measure_text.recognition(samples_60, digits, load_classifier(which))["named"] >= 0.9
    ink = measure_text.ink(samples_60, styles)
    assert ink["thin"] + 0.05 < ink["plain"] < ink["thick"] - 0.05
    assert float((samples_60[:, 0] - samples_60[:, 1]).abs().mean()) < 0.05


def test_guidance_and_prompt_matter_and_the_seed_decides(pipeline: StableDiffusionPipeline):
    """One noise: another digit, another guidance give another picture; the same call the same one."""
    draw = lambda prompt, guidance: measure_text.draw_pictures(  # noqa: E731
        pipeline, [prompt], Drawing(guidance=guidance, steps=5)
    )
    assert torch.equal(draw("three", 3.0), draw("three", 3.0))
    assert (draw("three", 3.0) - draw("seven", 3.0)).abs().mean() > 0.02
    assert (draw("three", 3.0) - draw("three", 7.5)).abs().mean() > 0.005


def test_samples_are_not_copies(samples_60: Tensor):
    """The median sample is at least 0.7 times as far from the training pictures as the median held-out picture."""
    distances = measure_text.memorisation(samples_60, text_training.TEXT, copies=1)
    assert distances["samples"]["median"] > 0.7 * distances["held_out"]["median"]


def test_nearest_distances_find_a_copy():
    """A training picture itself lies at 0; shifted by a grey of 0.1 everywhere at 0.1."""
    pictures, _ = measure_text.training_pictures("held_out", text_training.TEXT, 0)
    distances = measure_text.nearest_distances(torch.stack([pictures[7], pictures[7] + 0.1]), pictures[:50])
    torch.testing.assert_close(distances, torch.tensor([0.0, 0.1]), atol=1e-3, rtol=0)


def test_the_card_says_at_least_what_was_promised():
    """Recognised >= 90 % at guidance 3 to 7.5, in 50 and in 20 steps; every digit >= 80 %; of the shipped settings."""
    assert CARD["settings"] == {
        name: json.loads(json.dumps(vars(each)))
        for name, each in (("vae", text_training.VAE), ("text", text_training.TEXT))
    }
    guided = [
        rates["named"] for name, rates in CARD["recognition"].items() if "guidance" in name and " 1.0" not in name
    ]
    assert len(guided) == 6 and min(guided) >= 0.9
    assert min(CARD["samples"]["named_of_digit"].values()) >= 0.8


def test_a_build_writes_every_file_and_a_card_of_what_it_wrote(tmp_path: Path):
    """Two updates of each network: the folder loads, its bytes, and the figures of the shipped card's names."""
    card = build_text.build_text(tmp_path, max_updates=2, each=1, all_steps=(2, 1), copies=0)
    assert set(card) == set(CARD) and set(card["bytes"]) == set(CARD["bytes"])
    assert json.loads((tmp_path / build_text.CARD_NAME).read_text(encoding="utf-8")) == card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card_text.json", "digits_text", "samples_text.png"]


def test_training_is_a_function_of_its_seed():
    """The same settings give the same weights bit for bit, whatever torch's global generator did before."""
    settings = Settings(seed=1, updates=2, batch=4, learning_rate=1e-3, weight_decay=0.0, ema=0.5, augmentation=1.0)

    def train(global_seed: int) -> Iterator[Tensor]:
        torch.manual_seed(global_seed)
        vae = text_training.train_vae(settings)
        yield from vae.state_dict().values()
        yield torch.tensor(vae.config["scaling_factor"])
        yield from text_training.train_conditioned(vae, text_model.new_tokenizer(), settings).state_dict().values()

    assert all(torch.equal(first, second) for first, second in zip(train(0), train(1), strict=True))
