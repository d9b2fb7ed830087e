"""A piece that runs out of memory is redone in halves: the same gradient, and the new size is kept."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.errors import OutOfMemoryError
from memdiff.methods.config import DraftConfig, ReinforceConfig
from memdiff.methods.draft import Draft
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.micro_batches import PieceSize, micro_batches
from memdiff.methods.reinforce import Reinforce
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces
from tests.helpers.one_graph import knobs
from tests.helpers.tiny import CPU, tiny_policy
from tests.workers.engine_parity import Brightness, relative


def test_batches_shrink_and_cover_everything_once() -> None:
    """10 items in sixes: a batch of 6 fails, one of 3 does not; the second batch of 3 fails once, then 2 fit.
    0-2 | (3-5 fails) 3-4, 5-6, 7-8, 9."""
    done: list[list[int]] = []
    failures = [6, None, 3]

    def work(batch: list[int], count: int) -> None:
        if failures and failures[0] in (None, len(batch)) and failures.pop(0) is not None:
            raise torch.OutOfMemoryError("no room")
        done.append(batch[:count])

    size = PieceSize(6)
    for batch in micro_batches(range(10), size):
        batch.run(work)
    assert done == [[0, 1, 2], [3, 4], [5, 6], [7, 8], [9]]
    assert (size.rows, size.halved) == (2, 2)


def test_one_at_a_time_is_the_end() -> None:
    def work(batch: list[int], count: int) -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(OutOfMemoryError, match="one image at a time") as raised:
        for batch in micro_batches(range(4), PieceSize(4)):
            batch.run(work)
    assert raised.value.exit_code == 7


class SmallCard:
    """A policy whose gradients need memory that is there for `rows` rows only, from call `after` on."""

    def __init__(self, policy: Any, rows: int, after: int) -> None:
        self._policy, self.rows, self.left, self.refused = policy, rows, after, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def mean(self, x_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left < 0 and len(x_BCHW) > self.rows:
                self.refused += 1
                raise torch.OutOfMemoryError("no room")
        return self._policy.mean(x_BCHW, steps, prompts)


def gradient(make: Callable[[WeightedReward, Pieces], Any], *, rows: int, after: int) -> tuple[Any, ...]:
    policy = SmallCard(tiny_policy(steps=4), rows, after)
    gradients = Gradients(list(policy.trainable().values()))
    reward = WeightedReward([WeightedPart("brightness", Brightness())], device=CPU)
    method = make(reward, Pieces(gradients))
    noise = Noise(seed=1, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape)
    this_round = Round(Batch(range(6), [""] * 6, 6, noise), Clock(CPU))
    metrics = method.differentiate(policy, method.collect(policy, this_round))
    return gradients.sums, metrics, policy.refused, method


def reinforce(reward: WeightedReward, pieces: Pieces) -> Reinforce:
    return Reinforce(ReinforceConfig(kind="reinforce"), reward, pieces, Ranks(0, 1, CPU), knobs(6))


def draft(reward: WeightedReward, pieces: Pieces) -> Draft:
    config = DraftConfig(kind="draft", last_steps="all")
    return Draft(config, reward, pieces, Ranks(0, 1, CPU), knobs(6, kept_steps=2, rollout_batch=6))


@pytest.mark.parametrize(("make", "after"), [(reinforce, 0), (reinforce, 2), (draft, 0), (draft, 1), (draft, 3)])
def test_the_gradient_is_the_same(make: Any, after: int) -> None:
    """From the first gradient, in a later piece, and for DRaFT in the middle of its way back: it keeps two of four
    steps, so that its third and fourth graphs are made when two pulls have been added already. 1e-4 and not 1e-5: the
    whitened advantages cancel."""
    wanted, expected_metrics, refused, _ = gradient(make, rows=6, after=0)
    assert refused == 0
    halved_gradient, metrics, refused, method = gradient(make, rows=2, after=after)
    assert refused == 2  # six rows, then three; two fit
    assert relative(halved_gradient, wanted) < 1e-4
    assert method.size.rows == 2
    for key in ("costate_norm", "clip_fraction", "last_steps_mean"):
        if key in expected_metrics:
            assert metrics[key] == pytest.approx(expected_metrics[key], rel=1e-3)


@pytest.mark.parametrize("make", [reinforce, draft])
def test_no_room_for_one(make: Any) -> None:
    with pytest.raises(OutOfMemoryError):
        gradient(make, rows=0, after=0)
