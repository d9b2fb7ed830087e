"""What each knob saves and costs, and plain sentences about what is not worth having."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from memdiff.memory.gpus import PCIE_BYTES_A_SECOND
from memdiff.memory.knobs import TABLE, word
from memdiff.memory.zero2 import States
from memdiff.planner.compose import estimate_round
from memdiff.planner.measured import Sizes
from memdiff.planner.piece_costs import PieceCosts
from memdiff.planner.rank_round import RankRound
from memdiff.planner.search import Recompute, Setting, recompute_of, situation
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.units import GIB

MISFIT_NOTE = "it does not fit:"
NETWORKS = ("idle_unet", "idle_decoder", "rewards")  # knobs that move some
WORTH_HAVING = 0.1  # of the peak: what saves less is said to be not worth it


class StatesOf(Protocol):
    """Training states under other choices."""

    def __call__(self, offload: bool, *, bits: Any = None, over: int = ...) -> States:
        """States where the optimizer is offloaded or not, with so many bits, over so many ranks."""
        ...


@dataclass(frozen=True)
class Change:
    """One knob set otherwise: what the peak, the FLOPs of a round and the seconds of moves would change by."""

    knob: str
    value: Any
    setting: str  # as --set takes it
    peak_bytes: int
    flops: float
    moved_seconds: float


def changes(
    setting: Setting, rank_round: RankRound, costs: Mapping[Recompute, PieceCosts], states_of: StatesOf
) -> list[Change]:
    """Each knob turned by itself, from the chosen setting."""
    before, knob_changes = setting.estimate, []
    has = situation(rank_round.workload(setting.knobs), costs[recompute_of(setting.knobs)].sizes)
    turns = [(name, value) for name, knob in TABLE.items() for value in knob.others(getattr(setting.knobs, name), has)]
    for name, value in turns:
        turned = setting.knobs.model_copy(update={name: value})
        if recompute_of(turned) not in costs:
            continue
        after = Setting(
            turned, estimate_round(rank_round, turned, costs[recompute_of(turned)], states_of(turned.offload_optimizer))
        )
        knob_changes.append(
            Change(
                knob=name,
                value=value,
                setting=f"memory.{name}={word(value)}",
                peak_bytes=after.peak_bytes - setting.peak_bytes,
                flops=after.estimate.flops - before.flops,
                moved_seconds=(after.estimate.moved_bytes - before.moved_bytes) / PCIE_BYTES_A_SECOND,
            )
        )
    return knob_changes


def costs_of_moving(candidates: Sequence[Change]) -> list[str]:
    """A sentence where a network that leaves the GPU would take more than it frees."""
    if not any(change.knob in NETWORKS and change.value != "gpu" and change.peak_bytes > 0 for change in candidates):
        return []
    return [
        "a network that leaves the GPU and comes back can cost more than it frees: torch's allocator was measured to "
        "hold a third to two thirds of the live bytes beyond them then"
    ]


def three_best(candidates: Sequence[Change]) -> list[str]:
    """The settings that save most, each with what it saves and costs, for a run that ran out of memory."""
    saving = sorted((change for change in candidates if change.peak_bytes < 0), key=lambda change: change.peak_bytes)
    suggestions: dict[str, str] = {}
    for change in saving:
        cost = "recomputes more" if change.flops > 0 else f"{change.moved_seconds:.1f} s a round"
        suggestions.setdefault(
            change.setting, f"--set {change.setting} (saves {-change.peak_bytes / GIB:.2f} GiB, {cost})"
        )
    return list(suggestions.values())[:3]


def sentences(
    recipe: Recipe, setting: Setting, sizes: Sizes, states_of: StatesOf, *, ranks: int, fits: bool, budget: int,
    smallest: int,
) -> list[str]:  # fmt: skip
    """What a person should know besides the numbers."""
    notes = []
    if not fits:
        notes.append(
            f"{MISFIT_NOTE} the nearest setting needs {smallest / GIB:.2f} GiB, {(smallest - budget) / GIB:.2f} "
            f"more than the budget of {budget / GIB:.2f}; the smallest budget that would do is {_up(smallest)} GiB"
        )
    peak, plain = setting.peak_bytes, states_of(setting.knobs.offload_optimizer)
    activations = setting.estimate.phases[setting.estimate.peak_phase]["activations"]
    alone = states_of(False, over=1).optimizer
    split = alone - states_of(False).optimizer
    if ranks == 1:
        notes.append("with one rank ZeRO-2 splits nothing")
    elif split < WORTH_HAVING * peak:
        notes.append(
            f"ZeRO-2 over {ranks} ranks saves {split / GIB:.2f} of {peak / GIB:.2f} GiB; activations are "
            f"{activations / GIB:.2f}"
        )
    fewer_bits = states_of(False, bits=32).optimizer - states_of(False, bits=8).optimizer
    if fewer_bits < WORTH_HAVING * peak:
        notes.append(f"8-bit states save {fewer_bits / GIB:.2f} GiB on each GPU: not worth having here")
    if recipe.adapter is None:
        saved = plain.accumulators + states_of(False).optimizer
        word = "not worth having for memory here" if saved < WORTH_HAVING * peak else "worth a thought"
        notes.append(f"LoRA in the place of full fine-tuning saves about {saved / GIB:.2f} GiB: {word}")
    return notes


def _up(size: int) -> str:
    """In GiB, rounded up to hundredths: a budget of so much fits."""
    return f"{-(-size * 100 // GIB) / 100:.2f}"
