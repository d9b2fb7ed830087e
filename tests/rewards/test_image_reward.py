"""ImageReward: the authors' checkpoint on transformers' BLIP modules. See also test_image_reward_oracle.py."""

import pytest
import torch
from transformers import BertTokenizer

from memdiff.errors import ConfigError, RewardError
from memdiff.rewards.families_config import ImageRewardConfig
from memdiff.rewards.image_reward import (
    ImageReward,
    ImageRewardNet,
    load_image_reward,
    load_tokenizer,
    preprocess,
    text_config,
    to_blip,
    vision_config,
)
from memdiff.rewards.score import score
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces
from tests.helpers import half_precision
from tests.helpers.image_reward_small import (
    PROMPTS,
    RECORD,
    SEED,
    SIDE,
    TOLERANCE,
    fill,
    net_score,
    plain_score,
    relative,
    small_checkpoint,
    small_images,
    small_net,
    small_reward,
    tokens_of,
)


def test_key_map_takes_the_packages_625_tensors_to_our_620_one_to_one():
    """Names and shapes of the package's own state dict, recorded by the oracle, against ImageRewardNet's."""
    package_state = {name: torch.empty(shape, device="meta") for name, shape in RECORD["shapes"].items()}
    with torch.device("meta"):
        wanted = ImageRewardNet(vision_config(), text_config()).state_dict()
    mapped = to_blip(package_state)
    assert (len(package_state), len(mapped)) == (625, 620)
    assert {name: tensor.shape for name, tensor in mapped.items()} == {n: t.shape for n, t in wanted.items()}
    assert sum(tensor.numel() for tensor in mapped.values()) == 446_206_689


def test_tokens_are_the_packages():
    """Padding, truncation at 35, empty text, accents, unknown words: ids and masks as the package made them."""
    ids_BL, mask_BL = tokens_of(RECORD["prompts"])
    assert ids_BL.tolist() == RECORD["prompt_ids"]
    assert mask_BL.long().tolist() == RECORD["prompt_masks"]


def test_small_network_scores_as_the_same_network_written_out():
    """Two layers of each, fp64, against plain torch under the checkpoint's names: 1e-10."""
    ids_BL, mask_BL = tokens_of(PROMPTS)
    pixels = preprocess(small_images().double(), SIDE)
    want = plain_score(small_checkpoint(torch.float64), pixels, ids_BL, mask_BL)
    assert want.std() > 0.05
    assert relative(net_score(small_net().double(), pixels, ids_BL, mask_BL), want) < 1e-10


@pytest.mark.parametrize("wrong", [{"heads": 8}, {"text_heads": 2}, {"eps": 1e-5}, {"text_eps": 1e-6}])
def test_a_wrong_hyperparameter_loads_without_an_error_and_shows_in_the_score(wrong):
    """Heads and eps have no weights: strict loading can't see them. The seeded weights are spread so that scores do."""
    ids_BL, mask_BL = tokens_of(PROMPTS)
    pixels = preprocess(small_images(), SIDE)
    want = plain_score(small_checkpoint(), pixels, ids_BL, mask_BL)
    assert relative(net_score(small_net(), pixels, ids_BL, mask_BL), want) < TOLERANCE / 10
    assert relative(net_score(small_net(**wrong), pixels, ids_BL, mask_BL), want) > TOLERANCE


def test_gradient_matches_finite_differences():
    """fp64, images that are resized and cropped: central differences along 6 random directions, 1e-6 relative."""
    torch.manual_seed(0)
    net = small_net().double()
    ids_BL, mask_BL = tokens_of(PROMPTS[:2])
    images = torch.from_numpy(fill.images(SEED, 2, 80)).double()[:, :, :64].clamp(0.2, 0.8).requires_grad_()

    def total(x):
        return net_score(net, preprocess(x, SIDE), ids_BL, mask_BL).sum()

    (gradient,) = torch.autograd.grad(total(images), images)
    for _ in range(6):
        step = torch.randn_like(images) * 1e-4
        with torch.no_grad():
            difference = (total(images + step) - total(images - step)) / 2
        assert float(difference) == pytest.approx(float((gradient * step).sum()), rel=1e-6, abs=1e-12)


def test_the_rewards_gradient_is_the_networks():
    """Through __call__ (fp32) as through the network in fp64: 1e-4; gradients reach every image."""
    reward, images = small_reward(), small_images(3).requires_grad_()
    (got,) = torch.autograd.grad(reward(images, PROMPTS[:3]).sum(), images)
    twin = images.detach().double().requires_grad_()
    ids_BL, mask_BL = tokens_of(PROMPTS[:3])
    (want,) = torch.autograd.grad(
        plain_score(small_checkpoint(torch.float64), preprocess(twin, SIDE), ids_BL, mask_BL).sum(), twin
    )
    assert (want.flatten(1).norm(dim=1) > 0).all()
    assert relative(got, want) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_chunks_give_the_same_scores(chunk):
    """8 images in chunks of 1, 2, 8 against one call over all: in fp64 to 1e-12, so nothing but rounding depends on it.

    In fp32 kernels of other shapes round otherwise; the reduced network cancels more than the real one (which the slow
    test below holds to 1e-6): 4e-6 of the largest score was seen, 1e-5 is the bound.
    """
    reward, images = small_reward(), small_images()
    ids_BL, mask_BL = tokens_of(PROMPTS)
    net, pixels = small_net().double(), preprocess(images.double(), SIDE)
    rows = [slice(start, start + chunk) for start in range(0, 8, chunk)]
    with torch.no_grad():
        parts = torch.cat([net_score(net, pixels[row], ids_BL[row], mask_BL[row]) for row in rows])
        assert relative(parts, net_score(net, pixels, ids_BL, mask_BL)) < 1e-12
        whole = reward(images, PROMPTS)
        assert relative(score(reward, images, PROMPTS, chunk=chunk, name="image_reward"), whole) < 1e-5


def saved_bytes_and_gradient(reward: ImageReward, images: torch.Tensor) -> tuple[int, torch.Tensor]:
    """What autograd keeps for the backward pass, weights apart, and the gradient of the summed scores."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in reward.net.parameters()}
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = images.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        total = reward(leaf, PROMPTS).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    return sum(kept.values()), gradient


def test_checkpointing_changes_no_gradient_and_keeps_less():
    """Per layer, non-reentrant, in eval mode: gradients bit for bit, and less than a third of the bytes kept."""
    kept, gradient = saved_bytes_and_gradient(small_reward(), small_images())
    kept_again, gradient_again = saved_bytes_and_gradient(small_reward(checkpointing=True), small_images())
    assert torch.equal(gradient, gradient_again)
    assert kept_again < kept / 3, (kept_again, kept)


def test_fp16_scores_and_gradients_are_near_fp32():
    """Transformers in fp16, head and scores in fp32: scores to 3e-2, gradients (as a piece pulls them) as torch's own.

    Some 40 roundings of 2^-11 in a row are 3e-3 of the features, which are of size 1; the scores, their weighted sums,
    cancel to 0.18: 1.7e-2 of them.
    """
    scores, gradients = {}, {}
    for dtype in (torch.float32, torch.float16):
        reward, images = small_reward(dtype=dtype), small_images().requires_grad_()
        (gradients[dtype],) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
        scores[dtype], pull = Pieces(Gradients([])).vjp(lambda x, reward=reward: reward(x, PROMPTS), images)
        got = pull(torch.full((8,), 1e-4))
        assert scores[dtype].dtype == torch.float32 and got is not None
    assert relative(scores[torch.float16], scores[torch.float32]) < 3e-2
    half_precision.check([1e4 * got], [gradients[torch.float16]], [gradients[torch.float32]])


def test_a_fixed_prompt_replaces_the_images_prompts_and_is_tokenised_once(monkeypatch):
    """With prompt: X, scores are those of X for every image, and no text is looked at twice."""
    asked = []
    original = BertTokenizer.__call__
    monkeypatch.setattr(
        BertTokenizer, "__call__", lambda self, text, **o: asked.extend(text) or original(self, text, **o)
    )
    fixed, free, images = small_reward(prompt="a photo of the cat"), small_reward(), small_images(2)
    with torch.no_grad():
        got = [fixed(images, prompts) for prompts in (["", ""], ["green", "man"])]
        assert asked == ["a photo of the cat"]
        want = free(images, ["a photo of the cat"] * 2)
        other = free(images, ["green", "green"])
    assert torch.equal(got[0], want) and torch.equal(got[1], want)
    assert not torch.allclose(other, want, atol=1e-4)


def test_one_prompt_an_image_is_demanded():
    """A single prompt for several images would broadcast inside the attention: RewardError instead."""
    with pytest.raises(RewardError, match="one prompt an image, got 1 for 2"):
        small_reward()(small_images(2), ["a cat"])


def test_grey_images_score_as_their_three_equal_channels():
    grey = small_images(2)[:, :1]
    with torch.no_grad():
        reward = small_reward()
        assert torch.equal(reward(grey, ["a", "a"]), reward(grey.expand(-1, 3, -1, -1), ["a", "a"]))


def test_a_folder_of_another_architecture_is_refused_in_one_line(tmp_path):
    """The reduced checkpoint in place of the real one: ConfigError naming file, missing keys and shapes."""
    torch.save(small_checkpoint(), tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(RECORD["vocabulary"]) + "\n", encoding="utf-8")
    part = ImageRewardConfig(kind="image_reward", path=str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        load_image_reward(part, torch.device("cpu"), cache=tmp_path / "cache")
    text = str(caught.value)
    assert (
        "ImageReward.pt" in text and "missing: vision.encoder.layers.2." in text and "should be (1, 197, 1024)" in text
    )


@pytest.mark.parametrize("content", [b"", b"cat\ndog\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"vocab\.txt"):
        load_tokenizer(tmp_path)
