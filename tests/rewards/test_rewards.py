"""Confidence modes, the digit classifiers, users' own functions and the weighted sum.

Shapes: B images of one call, P parts, N images of a round.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from memdiff.chain.advantage import leave_one_out
from memdiff.digits.classifiers import load_classifier
from memdiff.digits.scans import real_digits
from memdiff.errors import ConfigError, RewardError
from memdiff.recipe.reading import check_recipe
from memdiff.rewards.build import build_weighted
from memdiff.rewards.confidence import confidence_score, has_gradient
from memdiff.rewards.config import Confidence, DigitsConfig, PythonConfig
from memdiff.rewards.digits import load_digits
from memdiff.rewards.python_function import PythonReward, load_python
from memdiff.rewards.score import score
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward, refuse_non_finite, towards_share

CPU = torch.device("cpu")


def scores_of(probabilities: Sequence[float], **config: Any) -> list[float]:
    """Scores of images whose label has these probabilities."""
    log_probability = torch.tensor(probabilities, dtype=torch.float64).log()
    return confidence_score(log_probability, Confidence(**config)).tolist()


def test_confidence_modes_by_hand():
    """At p = 0, 0.1, 0.25, 0.5, 0.75, 0.9 and 1, with low = 0.25 and high = 0.75; both thresholds are part of what is
    sure, and between them `confident` is 0."""
    p = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
    bounds = {"low": 0.25, "high": 0.75}
    assert scores_of(p, mode="binary", **bounds) == [0, 0, 0, 0, 1, 1, 1]
    assert scores_of(p, mode="share", target_share=0.5, **bounds) == [0, 0, 0, 0, 1, 1, 1]
    assert scores_of(p, mode="confident", **bounds) == pytest.approx([0, 0.1, 0.25, 0, 0.75, 0.9, 1])
    assert scores_of(p, mode="probability", **bounds) == pytest.approx(p)
    expected = [-math.inf, *(math.log(value) for value in p[1:])]
    assert scores_of(p, mode="log_probability", **bounds) == pytest.approx(expected)


def test_the_documents_thresholds():
    """high 0.8 and low 0.2 unless said otherwise: 0.8 and more is yes, 0.2 and less a sure no."""
    p = [0.2 - 1e-9, 0.2 + 1e-9, 0.8 - 1e-9, 0.8 + 1e-9]
    assert scores_of(p, mode="binary") == [0, 0, 0, 1]
    assert scores_of(p, mode="confident") == pytest.approx([0.2, 0, 0, 0.8])


@pytest.fixture(scope="module")
def scans() -> torch.Tensor:
    """Real digits that no classifier was trained on: B 1 H W."""
    return real_digits("held_out")[0][:24]


@pytest.mark.parametrize("classifier", ["reward", "judge"])
def test_digits_score_is_the_softmax_sum(classifier: Any, scans: torch.Tensor):
    """The probability of `digits` is the sum of their softmax, and its logarithm that sum's logarithm; every image's
    probabilities over all ten add up to one."""
    softmax_BK = load_classifier(classifier)(scans).softmax(dim=1)
    for digits in ((5, 6, 7, 8, 9), (0,), (3, 1)):
        truth = softmax_BK[:, list(digits)].sum(dim=1)
        config = DigitsConfig(kind="digits", digits=digits, classifier=classifier, mode="probability")
        scores = load_digits(config, CPU)(scans, [""] * 24)
        torch.testing.assert_close(scores, truth, rtol=1e-5, atol=1e-6)
        scores = load_digits(config.model_copy(update={"mode": "log_probability"}), CPU)(scans, [""] * 24)
        torch.testing.assert_close(scores, truth.log(), rtol=1e-5, atol=1e-5)
    everything = DigitsConfig(kind="digits", digits=tuple(range(10)), mode="probability")
    torch.testing.assert_close(load_digits(everything, CPU)(scans, [""] * 24), torch.ones(24))


def test_digits_reward_knows_digits(scans: torch.Tensor):
    """Real held-out digits of 5-9 get a 1, real ones of 0-4 a 0, with few exceptions."""
    labels = real_digits("held_out")[1][:24]
    scores = load_digits(DigitsConfig(kind="digits"), CPU)(scans, [""] * 24)
    assert ((scores == 1) == (labels >= 5)).float().mean() > 0.9 and set(scores.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("mode", ["probability", "log_probability", "confident", "binary", "share"])
def test_gradients_flow_where_they_are_promised(mode: Any, scans: torch.Tensor):
    """`differentiable` says whether there is a gradient at the images; autograd's directional derivative is the real
    one. A yes or a no has none. The classifier's own weights never get any."""
    share = 0.5 if mode == "share" else None
    reward = load_digits(DigitsConfig(kind="digits", mode=mode, target_share=share), CPU)
    images = scans[:4].clone().requires_grad_()
    scores = reward(images, [""] * 4)
    assert (
        reward.differentiable
        is has_gradient(reward.config)
        is scores.requires_grad
        is (mode not in ("binary", "share"))
    )
    if reward.differentiable:
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        direction = gradient / gradient.norm()
        up, down = (reward(scans[:4] + sign * 1e-2 * direction, [""] * 4).sum() for sign in (1, -1))
        assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / 2e-2, rel=0.05)
    assert all(
        parameter.grad is None and not parameter.requires_grad for n in reward.networks for parameter in n.parameters()
    )


def python_reward(
    folder: Path, body: str, *, head: str = "import numpy as np\nimport torch", **config: Any
) -> PythonReward:
    """A reward whose file holds `head` and a `score` with this body."""
    file = folder / "mine.py"
    file.write_text(f"{head}\n\ndef score(images, prompts):\n    {body}\n")
    return load_python(PythonConfig(kind="python", file=str(file), **config))


@pytest.mark.parametrize(
    "body",
    [
        "return images.mean(dim=(1, 2, 3))",
        "return images.mean(dim=(1, 2, 3)).double()",
        "return images.mean(dim=(1, 2, 3)).numpy()",
        "return images.flip(0).mean(dim=(1, 2, 3)).numpy()[::-1]",
        "return images.mean(dim=(1, 2, 3)).numpy().astype('>f8')",
        "return images.mean(dim=(1, 2, 3)).tolist()",
        "return tuple(image.mean() for image in images)",
        "return [float(image.mean()) for image, prompt in zip(images, prompts, strict=True)]",
    ],
)
def test_numbers_may_come_in_any_form(tmp_path: Path, body: str):
    """A tensor, an array in any memory order, a list or a tuple of one number an image: scores in fp32."""
    images = torch.rand(5, 3, 4, 4)
    fp32_scores = score(python_reward(tmp_path, body), images, ["a"] * 5, chunk=2, name="mine")
    assert fp32_scores.dtype == torch.float32 and fp32_scores.shape == (5,)
    torch.testing.assert_close(fp32_scores, images.mean(dim=(1, 2, 3)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "must return 2 numbers for 2 images, got NoneType"),
        ("return 'high'", "must return 2 numbers for 2 images, got str"),
        ("return ['a', 'b']", "must return 2 numbers for 2 images, got list"),
        ("return np.array([1, None])", "must return 2 numbers for 2 images, got list"),
        ("return 3.0", "shape (2,), got shape ()"),
        ("return torch.tensor(3.0)", "shape (2,), got shape (); nothing is broadcast"),
        ("return torch.zeros(2, 1)", "shape (2,), got shape (2, 1); nothing is broadcast"),
        ("return np.zeros((1, 2))", "got shape (1, 2)"),
        ("return [1, 2, 3]", "got shape (3,)"),
        ("return []", "got shape (0,)"),
        ("return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("return prompts[7]", "raised IndexError"),
        ("raise SystemExit('enough')", "raised SystemExit: enough"),
    ],
)
def test_what_is_not_one_number_an_image_is_refused(tmp_path: Path, body: str, said: str):
    """Exit code 3 and one line that names file, function, what was expected and what was got. A scalar is not spread
    over the images."""
    with pytest.raises(RewardError) as caught:
        score(python_reward(tmp_path, body), torch.rand(2, 3, 4, 4), ["a", "b"], chunk=8, name="part")
    message = str(caught.value)
    assert caught.value.exit_code == 3 and message.startswith("reward mine.py:score ") and said in message
    assert "\n" not in message


def test_a_function_that_runs_out_of_memory_is_no_mistake(tmp_path: Path):
    """The error goes through, so that the piece is made again in halves."""
    part = python_reward(tmp_path, "raise torch.OutOfMemoryError('no room')")
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        score(part, torch.rand(2, 3, 4, 4), ["a", "b"], chunk=8, name="part")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("score = (", "SyntaxError"),
        ("raise ValueError('first line\\nsecond line')", "ValueError: first line second line"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_file_that_cannot_be_imported_is_a_mistake_in_the_recipe(tmp_path: Path, head: str, said: str):
    """Exit code 2 and one line with the file and the cause, before anything is sampled."""
    with pytest.raises(ConfigError) as caught:
        python_reward(tmp_path, "return [1]", head=head)
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "mine.py can't be imported" in message and said in message
    assert "\n" not in message


def test_a_function_that_is_not_there(tmp_path: Path):
    """The line names the file and the function that the recipe asks for; a file of another kind is no Python file."""
    with pytest.raises(ConfigError, match=r"mine\.py has no function other"):
        python_reward(tmp_path, "return [1]", function="other")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"mine\.txt is not a Python file"):
        load_python(PythonConfig(kind="python", file=str(tmp_path / "mine.txt")))


def test_a_users_file_may_hold_dataclasses(tmp_path: Path):
    """Those with postponed annotations look for their module where imported modules are kept."""
    head = "from __future__ import annotations\nimport dataclasses\n"
    head += "@dataclasses.dataclass\nclass Best:\n    value: int = 4\n"
    assert python_reward(tmp_path, "return [Best().value]", head=head)(torch.rand(1, 3, 4, 4), [""]).tolist() == [4]


WRITES = {
    "in place": "images.mul_(0.5)",
    "a part of it": "images[:, :, 0] = 0",
    "through data": "images.data.fill_(0.3)",
    "through numpy": "images.detach().numpy()[...] = 0",
    "a list": "prompts[:] = []",
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("chunk", [2, 8])
def test_a_function_that_writes_changes_nothing_else(write: str, chunk: int, tmp_path: Path, scans: torch.Tensor):
    """The parts after it score what they score alone, and images that are measured and shown later stay as they are."""
    images, before = scans[:5].clone(), scans[:5]
    writer = python_reward(tmp_path, f"kept.append(images); {write}; return [0.0] * len(images)", head="kept = []")
    digits = WeightedPart("digits", load_digits(DigitsConfig(kind="digits", mode="probability"), CPU))
    alone = WeightedReward([digits], device=CPU).raw(images, ["a"] * 5)
    prompts = ["a"] * 5
    raw_scores = WeightedReward([WeightedPart("writer", writer, chunk=chunk), digits], device=CPU).raw(images, prompts)
    assert torch.equal(raw_scores[1:], alone) and torch.equal(images, before) and prompts == ["a"] * 5


def test_a_function_may_keep_its_buffers(tmp_path: Path, scans: torch.Tensor):
    """One tensor returned at every call, and views of the images: scores stay those of their own chunk."""
    body = "scores[:] = images.mean(dim=(1, 2, 3)); return scores"
    buffered = python_reward(tmp_path, body, head="import torch\nscores = torch.zeros(2)")
    assert torch.equal(score(buffered, scans[:4], [""] * 4, chunk=2, name="x"), scans[:4].mean(dim=(1, 2, 3)))
    view = python_reward(tmp_path, "images.mul_(2); return images[:, 0, 8, 8]")
    assert torch.equal(score(view, scans[:4], [""] * 4, chunk=2, name="x"), 2 * scans[:4, 0, 8, 8])


def test_the_gradient_goes_through_a_function_that_writes(tmp_path: Path):
    """f = sum of (3 x)^2, tripled in place on what requires a gradient: df/dx = 18 x."""
    tripled = python_reward(tmp_path, "images.mul_(3); return images.square().sum(dim=(1, 2, 3))", differentiable=True)
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(score(tripled, images, [""] * 2, chunk=1, name="x").sum(), images)
    torch.testing.assert_close(gradient, 18 * images.detach())


def test_a_reward_of_another_kind_that_writes_is_named():
    """Only a user's function gets copies; another reward that writes into the shared images is refused by name."""

    class Doubling(Brightness):
        def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            return super().__call__(images_BCHW.mul_(2), prompts)

    part = WeightedPart("bright", Doubling())
    with pytest.raises(RewardError, match=r"reward bright wrote into the images"):
        WeightedReward([part], device=CPU).raw(torch.rand(3, 3, 4, 4), [""] * 3)


def test_a_function_of_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative file is found beside the recipe; its part is named after the function, and gets images and prompts."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text(
        "def length(images, prompts):\n    return [len(p) for p in prompts]\n"
    )
    monkeypatch.chdir(tmp_path)
    raw = {
        "model": {"kind": "embedded"},
        "method": {"kind": "reinforce"},
        "reward": [{"kind": "python", "file": "mine.py", "function": "length", "weight": 2}],
    }
    recipe = check_recipe(raw, source="test", folder=tmp_path / "recipes")
    weighted = build_weighted(recipe.reward, device=CPU)
    raw_PN = weighted.raw(torch.rand(2, 1, 4, 4), ["a", "cat"])
    assert weighted.names == ("length",) and raw_PN.tolist() == [[1, 3]]
    assert total(weighted, raw_PN) == [2, 6]


class Brightness:
    """Mean pixel; keeps the sizes of the batches that it was given."""

    differentiable = True
    networks: Sequence[torch.nn.Module] = ()

    def __init__(self, of: Callable[[torch.Tensor], torch.Tensor] = lambda means: means) -> None:
        self.of, self.sizes = of, []

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        assert len(prompts) == len(images_BCHW)
        self.sizes.append(len(images_BCHW))
        return self.of(images_BCHW.mean(dim=(1, 2, 3)))


def total(weighted: WeightedReward, raw_PN: torch.Tensor) -> list[float]:
    return weighted.combine(raw_PN, weighted.statistics).tolist()


def test_the_sum_by_hand():
    """Means 0.25 and 0.75, their squares, weights 2 and -4: 2 * 0.25 - 4 * 0.0625 = 0.25 and 1.5 - 2.25 = -0.75."""
    images = torch.stack([torch.full((3, 2, 2), 0.25), torch.full((3, 2, 2), 0.75)])
    parts = [WeightedPart("mean", Brightness(), 2.0), WeightedPart("square", Brightness(torch.square), -4.0)]
    weighted = WeightedReward(parts, device=CPU)
    raw_PN = weighted.raw(images, ["", ""])
    assert raw_PN.tolist() == [[0.25, 0.75], [0.0625, 0.5625]] and weighted.names == ("mean", "square")
    assert total(weighted, raw_PN) == [0.25, -0.75]


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_chunks_do_not_matter(chunk: int):
    """Seven images at once, two at a time or one by one: the same scores to 1e-6, in batches of at most `chunk`."""
    images = torch.rand(7, 3, 8, 8)
    reward = Brightness()
    raw_scores = WeightedReward([WeightedPart("mean", reward, chunk=chunk)], device=CPU).raw(images, [""] * 7)
    torch.testing.assert_close(raw_scores[0], images.mean(dim=(1, 2, 3)), rtol=0, atol=1e-6)
    assert max(reward.sizes) <= chunk and sum(reward.sizes) == 7


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_chunks_do_not_matter_to_a_network(chunk: int, scans: torch.Tensor):
    """Nor to the digit classifier, whose kernels differ by batch size: 1e-6 in probability."""
    reward = load_digits(DigitsConfig(kind="digits", mode="probability"), CPU)
    whole = score(reward, scans[:7], [""] * 7, chunk=7, name="digits")
    chunked_scores = score(reward, scans[:7], [""] * 7, chunk=chunk, name="digits")
    torch.testing.assert_close(chunked_scores, whole, rtol=0, atol=1e-6)


def test_no_images_and_no_parts():
    """A rank without an image of its own has no scores, and a sum of no parts is nothing; neither is an error."""
    weighted = WeightedReward([WeightedPart("mean", Brightness())], device=CPU)
    assert weighted.raw(torch.rand(0, 3, 4, 4), []).shape == (1, 0)
    nothing = WeightedReward([], device=CPU)
    assert nothing.raw(torch.rand(2, 3, 4, 4), ["", ""]).shape == (0, 2)


def test_a_part_that_returns_nonsense_is_named():
    """Whatever the family: the line names the part, what was expected and what was got."""
    part = WeightedPart("bright", Brightness(lambda means: means[:, None]))
    with pytest.raises(
        RewardError, match=r"^reward bright must return 3 numbers for 3 images, shape \(3,\), got shape \(3, 1\)"
    ):
        WeightedReward([part], device=CPU).raw(torch.rand(3, 3, 4, 4), [""] * 3)


def test_scores_that_are_not_finite_are_named():
    """Part, image (numbered over the round), value and prompt of the first; and how many there are."""
    raw_PN = torch.tensor([[1.0, 2.0, 3.0], [4.0, math.inf, math.nan]])
    refuse_non_finite(raw_PN[:1], ["mean"])
    with pytest.raises(RewardError) as caught:
        refuse_non_finite(raw_PN, ["mean", "square"], ["a", "a red fox", "c"])
    said = "reward square gave inf for image 1 of the round, prompt 'a red fox'; 2 of 6 scores are not finite"
    assert str(caught.value) == said
    with pytest.raises(RewardError, match=r"reward mean gave nan for image 2 of the round; 1 of 3"):
        refuse_non_finite(torch.tensor([[0, 0, math.nan]]), ["mean"], ["", "", ""])


def test_a_target_share_by_hand():
    """Three of four are yes and a half is wanted: 2 (0.5 - 0.75) = -0.5 for each yes, nothing for the no. At the target
    there is nothing to gain. In the sum it is taken over the whole round and weighted."""
    assert towards_share(torch.tensor([1.0, 1, 0, 1]), 0.5).tolist() == [-0.5, -0.5, 0, -0.5]
    assert towards_share(torch.tensor([1.0, 0, 0, 1]), 0.5).tolist() == [0, 0, 0, 0]
    part = WeightedPart("yes", Brightness(), 3.0, is_share=True, target_share=0.25)
    combined = total(WeightedReward([part], device=CPU), torch.tensor([[0.0, 0, 0, 1, 0, 0, 0, 0]]))
    assert combined == [0, 0, 0, 0.75, 0, 0, 0, 0]  # 3 * 2 * (0.25 - 0.125)


def test_the_target_share_gradient():
    """Images i are yes with probability p_i(theta), and p_i d log p_i = d p_i. So the policy gradient of the rewards
    2 (target - share) p_i is 1/N sum_i 2 (target - share) d p_i, which is d of -(share - target)^2, by autograd too."""
    theta = torch.tensor([-1.0, 0.3, 2.0, 0.7, -0.2], dtype=torch.float64, requires_grad=True)
    p = theta.sigmoid()
    (truth,) = torch.autograd.grad(-((p.mean() - 0.4) ** 2), theta, retain_graph=True)
    rewards = towards_share(p.detach(), 0.4)
    (policy_gradient,) = torch.autograd.grad((rewards * p.log()).mean(), theta)
    torch.testing.assert_close(policy_gradient, truth, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_target_share_gradient_by_sampling(count: int):
    """N images, yes with p = sigmoid(theta): leave-one-out over all 2^N outcomes expects, by the working below, the
    gradient 2 (t - p) p (1 - p) of -(p - t)^2 less 2 p (1 - p) (1 - 2 p) / N, since an image is part of its own share.

    With y = 1: (1 - p) E[(t - (1 + S) / N) (1 - q)], with y = 0: -p E[-(t - S / N) q], S yes among the others and
    q = S / (N - 1), E q = p: together p (1 - p) (t - (N - 1) p / N - (1 - p) / N) = p (1 - p) (t - p - (1 - 2 p) / N).
    """
    p, target = 0.3, 0.6
    total = 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=count):
        y = torch.tensor(outcome, dtype=torch.float64)
        advantage = leave_one_out(towards_share(y, target))  # 2 (target - share) (y_i - mean of the other y)
        probability = math.prod(p if value else 1 - p for value in outcome)
        total += probability * (advantage * (y - p)).mean().item()
    assert total == pytest.approx(2 * p * (1 - p) * (target - p - (1 - 2 * p) / count), abs=1e-12)
