"""Memory that runs out at any allocation of a piece: what is redone counts once, in gradients and in diagnostics.

The allocations are torch's own: every operator that returns a new tensor, forward, backward and around them. The model
is a few lines long, so that each of them can be the one that fails.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memdiff.chain.schedule import Schedule
from memdiff.errors import OutOfMemoryError
from memdiff.methods.alignprop import AlignProp
from memdiff.methods.config import AlignPropConfig, DraftConfig, ReflConfig, ReinforceConfig
from memdiff.methods.draft import Draft
from memdiff.methods.refl import Refl
from memdiff.methods.reinforce import Reinforce
from memdiff.methods.reinforce_one_pass import ReinforceOnePass
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.half_precision import call_network, widen
from memdiff.runtime.vjp import Pieces
from tests.helpers.one_graph import ALONE, Waves, knobs, round_of, waves
from tests.helpers.tiny import CPU, tiny_policy

IMAGES = 4


class Short(TorchDispatchMode):
    """Counts operators that return a new tensor. Those of numbers in `failing` find no memory."""

    def __init__(self, failing: Container[int] = ()) -> None:
        super().__init__()
        self.count, self.failing = 0, failing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(one.alias_info is None and "Tensor" in str(one.type) for one in func._schema.returns):
            self.count += 1
            if self.count in self.failing:
                raise torch.OutOfMemoryError("no room")
        return func(*args, **(kwargs or {}))


@cache
def schedule() -> Schedule:
    """Three steps, the last one without a density."""
    return tiny_policy(steps=3).schedule


class Line:
    """A policy whose mean is a line in x, with three parameters; images are x itself."""

    separable = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.device, self.shape = dtype, CPU, (1, 4, 4)
        self.schedule, self.networks = schedule(), {"unet": torch.nn.Module()}
        torch.manual_seed(0)
        self._trained = {name: torch.nn.Parameter(torch.randn(1, 4, 4).to(dtype)) for name in ("a", "b", "c")}
        self._base = [p.detach().clone() + 0.1 for p in self._trained.values()]
        self._weights: Sequence[torch.Tensor] = tuple(self._trained.values())

    def encode(self, prompts: Sequence[str]) -> None: ...

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return self._trained

    def trains(self, step: int) -> bool:
        return True

    def predict(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        a, b, c = self._weights
        return call_network(lambda x: torch.tanh(x * a + b) * c, widen(x_t_BCHW), self.dtype)

    def mean(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        return 0.8 * widen(x_t_BCHW) + 0.2 * self.predict(x_t_BCHW, steps, prompts)

    x0 = predict

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        return widen(x_0_BCHW)

    @contextmanager
    def base(self) -> Iterator[None]:
        self._weights, before = self._base, self._weights
        try:
            yield
        finally:
            self._weights = before

    @contextmanager
    def per_image_weights(self, images: int) -> Iterator[Sequence[torch.Tensor]]:
        own = [p.detach().expand(images, *p.shape).requires_grad_() for p in self._trained.values()]
        self._weights, before = own, self._weights
        try:
            yield own
        finally:
            self._weights = before


METHODS: dict[str, tuple[Any, Any]] = {
    "reinforce": (Reinforce, ReinforceConfig(kind="reinforce")),
    "kl": (Reinforce, ReinforceConfig(kind="reinforce", kl_weight=0.5)),
    "baseline": (Reinforce, ReinforceConfig(kind="reinforce", baseline="predicted_image")),
    "second update": (Reinforce, ReinforceConfig(kind="reinforce", inner_updates=2)),
    "draft": (Draft, DraftConfig(kind="draft", last_steps=2, base_distance=0.3)),
    "draft lv": (Draft, DraftConfig(kind="draft", last_steps=1, noise_samples=2)),
    "alignprop": (AlignProp, AlignPropConfig(kind="alignprop", last_steps=2)),
    "refl": (Refl, ReflConfig(kind="refl", first_step=1, last_step=2)),
}
WHOLE = {"reinforce": 8, "kl": 8, "baseline": 8, "second update": 8}  # four images by two steps with a density


def outcome(
    method: str, dtype: torch.dtype, rows: int, failing: Container[int] = ()
) -> tuple[torch.Tensor, dict[str, Any], int]:
    """The gradient of one round in pieces of `rows`, its diagnostics, and how many allocations that took."""
    policy: Any = Line(dtype)
    kind, config = METHODS[method]
    gradients = Gradients(list(policy.trainable().values()))
    changes = {"kept_steps": 1, "rollout_batch": IMAGES}
    algorithm = kind(config, waves(), Pieces(gradients), ALONE, knobs(rows, **changes))
    experience = algorithm.collect(policy, round_of(policy, IMAGES))
    if method == "second update":
        algorithm.differentiate(policy, experience)
        gradients.zero()
    with Short(failing) as short:
        metrics = algorithm.differentiate(policy, experience)
    return torch.cat([total.flatten() for total in gradients.sums]), metrics, short.count


@cache
def halved(method: str, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any], int]:
    """Of a run that starts in halves."""
    return outcome(method, dtype, WHOLE.get(method, IMAGES) // 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_piece_that_ran_out_of_memory_counts_once(method: str, dtype: torch.dtype) -> None:
    """The only piece of a round, at 40 of its allocations or more: bit for bit what a start in halves gives; or, where
    a gradient's copy was done without, what no failure gives. The error comes out where it is no piece's.
    """
    rows = WHOLE.get(method, IMAGES)
    whole_gradient, whole_metrics, count = outcome(method, dtype, rows)
    half_gradient, half_metrics, _ = halved(method, dtype)
    redone = done_without = 0
    for number in range(1, count + 1, max(1, count // 40)):
        try:
            gradient, metrics, _ = outcome(method, dtype, rows, [number])
        except torch.OutOfMemoryError:
            continue
        if torch.equal(gradient, half_gradient):
            assert metrics == half_metrics, f"allocation {number} of {count}"
            redone += 1
        else:
            assert torch.equal(gradient, whole_gradient) and metrics == whole_metrics, f"allocation {number} of {count}"
            done_without += 1
    assert redone > 20
    assert done_without or dtype == torch.float32  # fp32 gradients are added as they are


def numbers(value: Any) -> list[float]:
    """Of a diagnostic, one or many; 0 for null."""
    return [entry or 0.0 for entry in value] if isinstance(value, list) else [value]


@pytest.mark.parametrize("method", ["kl", "draft", "refl"])
def test_what_earlier_pieces_added_stays(method: str) -> None:
    """The second of two pieces, fp32: the gradient and the diagnostics of a run without failures, <= 1e-6."""
    rows = WHOLE.get(method, IMAGES) // 2
    wanted, expected_metrics, count = outcome(method, torch.float32, rows)
    redone = 0
    for number in range(count // 2, count + 1, 4):
        try:
            gradient, metrics, took = outcome(method, torch.float32, rows, [number])
        except torch.OutOfMemoryError:
            continue
        assert (gradient - wanted).norm() <= 1e-6 * wanted.norm(), f"allocation {number} of {count}"
        assert metrics.keys() == expected_metrics.keys()
        for key in expected_metrics:
            if key != "step_gradient_norm" or method == "kl":  # else a mean over micro-batches, of which there are more
                assert numbers(metrics[key]) == pytest.approx(numbers(expected_metrics[key]), rel=1e-4), key
        redone += took > count
    assert redone > 5


@pytest.mark.parametrize("update", [1, 2])
def test_one_pass_adds_all_of_a_piece_or_nothing(update: int) -> None:
    """Two pieces of four images: where the error comes out, the sums hold none, one or both, and never a part."""

    def sums_of(failing: Container[int]) -> tuple[torch.Tensor, bool, int]:
        policy: Any = Line(torch.float32)
        gradients = Gradients(list(policy.trainable().values()))
        config = ReinforceConfig(kind="reinforce", inner_updates=2)
        algorithm = ReinforceOnePass(config, waves(), Pieces(gradients), ALONE, knobs(4, one_pass=True))
        experience = algorithm.collect(policy, round_of(policy, 4))
        if update == 2:
            algorithm.differentiate(policy, experience)
            gradients.zero()
        ended = False
        with Short(failing) as short:
            try:
                algorithm.differentiate(policy, experience)
            except (torch.OutOfMemoryError, OutOfMemoryError):
                ended = True
        return torch.cat([total.flatten() for total in gradients.sums]), ended, short.count

    whole, _, count = sums_of(())
    seen: list[torch.Tensor] = [torch.zeros_like(whole), whole]
    for number in range(1, count + 1):
        got, ended, _ = sums_of([number])
        if not any((got - one).norm() <= 1e-6 * whole.norm() for one in seen):
            assert ended and update == 2 and len(seen) == 2, f"allocation {number} of {count}"
            seen.append(got)  # the first of the two pieces
    assert len(seen) == update + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_gradient_is_added_without_memory(dtype: torch.dtype) -> None:
    """The same bits as with it, subnormal numbers and the largest ones too."""
    torch.manual_seed(1)
    parameters = [torch.zeros(257, dtype=dtype) for _ in range(2)]
    sums = []
    for failing in ((), range(1, 100)):
        torch.manual_seed(2)
        gradients = Gradients(parameters)
        for exponent in (-14, 0, 9):
            values = [(torch.randn(257) * 2.0**exponent).to(dtype) for _ in parameters]
            unscale = torch.tensor(2.0**-17) if dtype == torch.float16 else None
            with Short(failing):
                gradients.add([values[0], None], unscale)
                gradients.add(values, unscale)
        sums.append(torch.cat(list(gradients.sums)))
    assert torch.equal(sums[0], sums[1]) and sums[0].norm() > 0


class SmallRoom:
    """A policy of four rows at most in `place`: where more are denoised or decoded at once, memory runs out."""

    def __init__(self, policy: Any, place: str, most: int) -> None:
        self._policy, self.place, self.most, self.refused = policy, place, most, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def _check(self, place: str, rows: int) -> None:
        if self.place == place and rows > self.most and not torch.is_grad_enabled():
            self.refused += 1
            raise torch.OutOfMemoryError("no room")

    def mean(self, x_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        self._check("rollout", len(x_BCHW))
        return self._policy.mean(x_BCHW, steps, prompts)

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        self._check("decode", len(x_0_BCHW))
        return self._policy.decode(x_0_BCHW)


class SmallReward(Waves):
    """Scores three images at once, and has no room for more."""

    most, refused = 3, 0

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        if len(images_BCHW) > self.most and not torch.is_grad_enabled():
            type(self).refused += 1
            raise torch.OutOfMemoryError("no room")
        return super().__call__(images_BCHW, prompts)


def round_in(place: str, most: int, method: str = "reinforce", rounds: int = 1) -> tuple[torch.Tensor, int]:
    """The gradient of a last round where `place` has room for `most` images, and how often it was refused memory."""
    policy: Any = SmallRoom(Line(torch.float32), place, most)
    scorer = SmallReward()
    SmallReward.refused, SmallReward.most = 0, most if place == "reward" else IMAGES
    reward = WeightedReward([WeightedPart("small", scorer)], device=CPU)
    gradients = Gradients(list(policy.trainable().values()))
    kind, config = (ReinforceOnePass, METHODS["reinforce"][1]) if method == "one pass" else METHODS[method]
    changes = {"kept_steps": 1, "rollout_batch": IMAGES, "one_pass": method == "one pass"}
    algorithm = kind(config, reward, Pieces(gradients), ALONE, knobs(IMAGES, **changes))
    for _ in range(rounds):
        gradients.zero()
        experience = algorithm.collect(policy, round_of(policy, IMAGES))
        algorithm.differentiate(policy, experience)
    return torch.cat([total.flatten() for total in gradients.sums]), policy.refused + SmallReward.refused


NO_GRAPH = [(place, method) for place in ("rollout", "decode", "reward") for method in ("reinforce", "baseline")]


@pytest.mark.parametrize(("place", "method"), [*NO_GRAPH, ("rollout", "draft")])
def test_what_has_no_graph_is_made_again_in_halves(place: str, method: str) -> None:
    """Room for one image of four: refused at four and at two, the gradient <= 1e-6 of one that had room; a second
    round is not refused again. Draft's pieces make states without a graph as well, and are refused as often."""
    times = 4 if method == "draft" else 2
    wanted, none = round_in("nowhere", IMAGES, method)
    gradient, refused = round_in(place, 1, method)
    assert none == 0 and refused == times
    assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()
    again, refused = round_in(place, 1, method, rounds=2)
    assert refused == times and torch.equal(again, gradient)


@pytest.mark.parametrize("place", ["rollout", "decode", "reward"])
def test_one_image_that_does_not_fit_ends_the_run(place: str) -> None:
    with pytest.raises(OutOfMemoryError, match=r"one image at a time does not fit") as raised:
        round_in(place, 0)
    assert raised.value.exit_code == 7


def test_one_pass_is_sampled_again_in_smaller_groups() -> None:
    """At 40 allocations of the sampling: the gradient of a start in halves, or that of no failure."""

    def outcome_of(rows: int, failing: Container[int] = ()) -> tuple[torch.Tensor, int, int]:
        policy: Any = Line(torch.float32)
        gradients = Gradients(list(policy.trainable().values()))
        config = METHODS["second update"][1]
        algorithm = ReinforceOnePass(config, waves(), Pieces(gradients), ALONE, knobs(rows, one_pass=True))
        with Short(failing) as short:
            experience = algorithm.collect(policy, round_of(policy, IMAGES))
        count = short.count
        for _ in range(2):
            algorithm.differentiate(policy, experience)
        return torch.cat([total.flatten() for total in gradients.sums]), count, algorithm.size.rows

    wanted, _, _ = outcome_of(IMAGES // 2)
    _, count, _ = outcome_of(IMAGES)
    redone = 0
    for number in range(1, count + 1, max(1, count // 40)):
        try:
            gradient, _, rows = outcome_of(IMAGES, [number])
        except torch.OutOfMemoryError:
            continue  # before the sampling, or after it
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm(), f"allocation {number} of {count}"
        redone += rows < IMAGES
    assert redone > 15
