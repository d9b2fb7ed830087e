"""Pieces that are asked together whether they are finite: the sums of asking each, and one wait for all of them."""

from collections.abc import Callable, Sequence

import pytest
import torch

from benchmarks.measures.host_waits import Waits, count_waits
from memdiff.errors import NumericError
from memdiff.memory.knobs import resolved
from memdiff.methods.experience import Clock
from memdiff.recipe.reading import check_recipe
from memdiff.runtime import finite_checks
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.half_precision import call_network
from memdiff.runtime.vjp import Pieces

OVERFLOWS = 2.0**9  # twice: a gradient of 2^18, above fp16's largest; once: below it


class Noticed:
    """Sums of what pieces tell, as diagnostics keep them."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def copied(self) -> Sequence[torch.Tensor]:
        return [self.total.clone()]

    def restore(self, sums: Sequence[torch.Tensor]) -> None:
        self.total.copy_(sums[0])

    def __call__(self, gradients: Sequence[torch.Tensor | None], unscale: torch.Tensor | None) -> None:
        (gradient,) = gradients
        assert gradient is not None
        self.total += gradient.float().sum() * (1.0 if unscale is None else unscale)


def chain(
    pieces: Pieces, weight: torch.Tensor, noticed: Noticed, factors: Sequence[float]
) -> Callable[[], torch.Tensor]:
    """A micro-batch of pieces y = factor^2 w x, pulled from the last to the first, each with the next one's costate."""

    def work() -> torch.Tensor:
        costate = torch.ones(4)
        for factor in reversed(factors):
            x = torch.full((4,), 0.5).requires_grad_()
            _, pull = pieces.vjp(
                lambda x, factor=factor: call_network(lambda x: (weight * x) * factor * factor, x, torch.float16),
                x,
                keep=True,
                on_gradients=noticed,
            )
            passed_on = pull(costate)
            assert passed_on is not None
            costate = passed_on / passed_on.abs().max()
        return costate

    return work


@pytest.mark.parametrize("bad", [(), (0,), (2,), (3,), (1, 3), (0, 1, 2, 3)])
def test_the_sums_are_those_of_asking_each_piece(bad: tuple[int, ...]) -> None:
    """Two micro-batches of four pieces, those of `bad` overflow: sums, diagnostics, costate, count, bit for bit."""
    factors = [OVERFLOWS if piece in bad else 1.5 for piece in range(4)]
    results = []
    for together in (False, True):
        weight = torch.nn.Parameter(torch.tensor([0.001, -0.002, 0.003, 0.001], dtype=torch.float16))
        pieces, noticed = Pieces(Gradients([weight])), Noticed()
        pieces.gradients.sums[0].fill_(1 / 3)  # of earlier micro-batches
        costates = []
        for _ in range(2):
            work = chain(pieces, weight, noticed, factors)
            costates.append(pieces.together(work, undo=[noticed]) if together else work())
        results.append((pieces.gradients.sums[0], noticed.total, *costates, torch.tensor(pieces.redone)))
    assert results[0][-1] == 2 * len(bad)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_pieces_with_weights_of_their_own_know_what_the_others_saw() -> None:
    """After a micro-batch that overflowed the next is asked piece by piece, and the one after that together again."""
    weight = torch.nn.Parameter(torch.full((4,), 0.001, dtype=torch.float16))
    pieces, noticed, runs = Pieces(Gradients([weight])), Noticed(), []
    for factors in ([OVERFLOWS], [1.0], [1.0]):
        into = pieces.into(Gradients([weight]))
        made = chain(into, weight, noticed, factors)

        def work(made: Callable[[], torch.Tensor] = made) -> None:
            runs.append(finite_checks.notes_here() is not None)
            made()

        into.together(work, undo=[noticed])
    assert runs == [True, False, False, True]
    assert pieces.redone == 1


def test_an_error_of_numbers_is_that_of_asking_each_piece_and_others_pass() -> None:
    """An infinite gradient ends in its own message though the work fails at something else first; a bug runs once."""
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    runs = []

    def broken(pieces: Pieces, number: float) -> None:
        runs.append(number)
        _, pull = pieces.vjp(lambda x: (weight * x + number).sqrt(), torch.ones(1), keep=True)
        pull(torch.ones(1))
        raise KeyError("of a user's reward")

    first, second = Pieces(Gradients([weight], names=["layer.weight"])), Pieces(Gradients([weight]))
    with pytest.raises(NumericError, match=r"layer\.weight is not finite"):
        first.together(broken, first, 0.0)
    with pytest.raises(KeyError, match="of a user's reward"):
        second.together(broken, second, 1.0)
    assert runs == [0.0, 0.0, 1.0]
    assert float(second.gradients.sums[0]) == 0.5  # d sqrt(w + 1) / dw at w = 0, added before the second one's bug


def test_memory_that_runs_out_takes_back_what_was_told() -> None:
    weight = torch.nn.Parameter(torch.full((4,), 0.001, dtype=torch.float16))
    pieces, noticed = Pieces(Gradients([weight])), Noticed()

    def work() -> None:
        chain(pieces, weight, noticed, [1.0])()
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        pieces.together(work, undo=[noticed])
    assert float(noticed.total) == 0.0


class Event:
    """In the place of CUDA's: a second between one record and the next."""

    recorded, waited = 0, 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0

    def record(self, stream: object) -> None:
        Event.recorded += 1
        self.at = Event.recorded

    def synchronize(self) -> None:
        Event.waited += 1

    def elapsed_time(self, other: "Event") -> float:
        return 1000.0 * (other.at - self.at)


def test_phases_on_a_card_wait_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records 1 to 6, of which a phase takes two: rollout 1 + 1 s, train 1 s; no wait before `read`."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    clock = Clock(torch.device("cuda", 0))
    for name in ("rollout", "train", "rollout"):
        with clock.phase(name):
            pass
    assert Event.waited == 0 and clock.seconds == {}
    assert clock.read() == {"rollout": 2.0, "train": 1.0}
    assert clock.read() == {"rollout": 2.0, "train": 1.0} and Event.waited == 3


MEMORY = {
    "micro_batch": 2, "rollout_batch": 2, "decode_batch": 1, "vae_checkpointing": "layers", "kept_steps": 0,
}  # fmt: skip
METHODS = {
    "alignprop": ({"kind": "alignprop", "truncation": "fixed"}, {}),
    "alignprop, kept": ({"kind": "alignprop", "truncation": "fixed"}, {"kept_steps": 2}),
    "reinforce, one pass": ({"kind": "reinforce"}, {"one_pass": True}),
    "reinforce, replayed": ({"kind": "reinforce"}, {}),
}


def waits(method: str) -> Waits:
    config, knobs = METHODS[method]
    raw = {
        "model": {"kind": "embedded", "name": "digits_text", "precision": "fp16"},
        "adapter": {"rank": 4},
        "sampler": {"steps": 25, "eta": 1.0, "guidance": 3.0},
        "prompts": ["three"],
        "method": config,
        "reward": [{"kind": "digits", "mode": "probability"}],
        "memory": {**MEMORY, **knobs},
        "run": {"rounds": 1, "images_per_round": 4},
    }
    recipe = check_recipe(raw, source="digits_text")
    return count_waits(recipe, resolved(recipe.memory))


@pytest.mark.parametrize(
    "method", ["alignprop", pytest.param("alignprop, kept", marks=pytest.mark.slow), "reinforce, one pass"]
)
def test_the_host_waits_once_a_micro_batch(method: str) -> None:
    """Host waits a micro-batch, in a chain of any length: 1. On fake tensors of the training code itself."""
    counted = waits(method)
    assert (counted.a_step, counted.a_micro_batch) == (0, 1), counted.lines


@pytest.mark.slow
def test_a_replay_waits_once_a_piece() -> None:
    """As many pieces here as steps: each is a micro-batch of its own, asked before it is added. None beside them."""
    counted = waits("reinforce, replayed")
    assert (counted.a_step, counted.a_micro_batch) == (1, 0), counted.lines


@pytest.mark.slow
def test_waits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter is no constant: asked piece by piece, a step is one wait more."""
    monkeypatch.setattr(Pieces, "together", lambda self, work, *arguments, undo=(): work(*arguments))
    counted = waits("reinforce, one pass")
    assert (counted.a_step, counted.a_micro_batch) == (1, 0), counted.lines
