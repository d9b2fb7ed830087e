"""The settings of the knobs, and which of those that fit is the fastest.

Settings are compared by estimated seconds: FLOPs at what the model's family reaches on the card, bytes moved over
PCIe, and a piece's fixed costs, a tenth of a one-image piece. FLOPs outweigh the rest, so that what is chosen is the
setting with the least recomputation, of those the one that moves least, of those the one with the largest pieces. One
whose pieces were measured is taken over one that is faster by less than NEGLIGIBLE: that would have to be measured.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from memdiff.memory.allowance import allowance_bytes
from memdiff.memory.gpus import PCIE_BYTES_A_SECOND
from memdiff.memory.knobs import TABLE, Knobs, MemoryConfig, Situation, resolved
from memdiff.memory.zero2 import States
from memdiff.methods.workload import Workload
from memdiff.planner.compose import Estimate, estimate_round
from memdiff.planner.measured import Sizes
from memdiff.planner.piece_costs import PieceCosts
from memdiff.planner.rank_round import RankRound

ENOUGH_FLOPS = 2e11  # of one image's step: pieces of one image fill a GPU from about there on (not measured)
NEGLIGIBLE = 1e-3  # of a round's estimated seconds
FIXED_SHARE = 0.1  # of a one-image piece: launches, sums of gradients; a piece of B images has it once
MEASURED = tuple(name for name, knob in TABLE.items() if knob.measured)
PLACED = tuple(name for name, knob in TABLE.items() if knob.choices and not knob.measured)
Recompute = tuple[Any, ...]  # values of the knobs that are measured, in their order
StatesOf = Callable[[bool], States]  # of whether the optimizer is offloaded


@dataclass(frozen=True)
class Setting:
    """Knobs and what comes of them."""

    knobs: Knobs
    estimate: Estimate

    @cached_property
    def peak_bytes(self) -> int:
        """What the allocator will have reserved: live bytes and the allowance."""
        return self.estimate.peak + self.allowance_bytes

    @cached_property
    def allowance_bytes(self) -> int:
        """Reserved beyond what is live."""
        return allowance_bytes(self.estimate.peak, self.knobs)

    @property
    def moved_seconds(self) -> float:
        """Of a round, over PCIe."""
        return self.estimate.moved_bytes / PCIE_BYTES_A_SECOND

    def seconds(self, tflops: float) -> float:
        """Of a round at so many TFLOP/s, as settings are compared."""
        return self.arithmetic_seconds(tflops) + self.moved_seconds

    def arithmetic_seconds(self, tflops: float) -> float:
        """Of them, those that nothing moves in."""
        return self.estimate.flops / (tflops * 1e12) * (1 + FIXED_SHARE / self.knobs.micro_batch)


def recompute_of(knobs: Knobs) -> Recompute:
    """Of the measured rounds that hold for these knobs."""
    return tuple(getattr(knobs, name) for name in MEASURED)


def situation(work: Workload, sizes: Sizes) -> Situation:
    """What the rows of knobs ask about."""
    return Situation(
        direct=work.by_micro_batch,
        may_take_one_pass=work.may_take_one_pass,
        most_kept=work.most_kept,
        frozen=sizes.unet > sizes.unet_trained,
        decoder=sizes.decoder > 0,
        rewards=sizes.rewards > 0,
    )


def left_open(memory: MemoryConfig, name: str, has: Situation | None = None) -> tuple[Any, ...]:
    """The values that a knob can take: what the recipe says, or the row's choices where `has` lets it have any."""
    value, knob = getattr(memory, name), TABLE[name]
    if value != "auto":
        return (value,)
    return knob.choices if knob.choices and (has is None or knob.needs(has)) else (knob.plain,)


@dataclass(frozen=True)
class Ways:
    """One way of recomputing at one size of pieces, in one pass or not: what is left open is where things lie."""

    knobs: Knobs
    costs: PieceCosts
    placed: tuple[tuple[Any, ...], ...]  # values of each knob of PLACED
    rank_round: RankRound
    states_of: StatesOf

    def settings(self) -> Iterator[Setting]:
        """All of them, as many steps kept as `knobs` say."""
        for values in product(*self.placed):
            yield self.at(self.knobs.model_copy(update=dict(zip(PLACED, values, strict=True))))

    def at(self, knobs: Knobs) -> Setting:
        """One of them, whatever its kept steps."""
        states = self.states_of(knobs.offload_optimizer)
        return Setting(knobs, estimate_round(self.rank_round, knobs, self.costs, states))

    def least_seconds(self, memory: MemoryConfig, tflops: float) -> float:
        """None of them takes less: the arithmetic with as many kept steps as there can be, and nothing moved."""
        most_kept = self.rank_round.workload(self.knobs).most_kept if memory.kept_steps == "auto" else 0
        knobs = self.knobs.model_copy(update={"kept_steps": most_kept}) if most_kept else self.knobs
        return self.at(knobs).arithmetic_seconds(tflops)


def all_ways(
    rank_round: RankRound, memory: MemoryConfig, costs: Mapping[Recompute, PieceCosts], states_of: StatesOf
) -> Iterator[Ways]:
    """What the recipe leaves open, with no kept steps where it doesn't say how many. Sizes of a way rise."""
    base = resolved(memory)
    work = rank_round.workload(base)
    for recompute, piece_costs in costs.items():
        if any(value not in left_open(memory, name) for name, value in zip(MEASURED, recompute, strict=True)):
            continue
        has = situation(work, piece_costs.sizes)
        placed = {name: left_open(memory, name, has) for name in PLACED}
        for batch, one_pass in product(batches(rank_round, work, memory, base), placed["one_pass"]):
            asked = memory.one_pass != "auto" or not one_pass
            if not asked and not _worth_one_pass(rank_round, batch["micro_batch"], piece_costs):
                continue
            chosen: dict[str, Any] = {**batch, **dict(zip(MEASURED, recompute, strict=True))}
            knobs = base.model_copy(update=chosen | {"one_pass": one_pass})
            yield Ways(knobs, piece_costs, tuple((placed | {"one_pass": (one_pass,)}).values()), rank_round, states_of)


def _worth_one_pass(rank_round: RankRound, rows: int, piece_costs: PieceCosts) -> bool:
    """Without an adapter its pieces are of one image: they have to fill a GPU, and are looked at once."""
    return rank_round.separable or (piece_costs.forward >= ENOUGH_FLOPS and rows == 1)


def smallest_of(every: Sequence[Ways]) -> Setting:
    """The setting with the lowest peak. It has the smallest pieces: no peak falls with their rows."""
    least = min(ways.knobs.micro_batch for ways in every)
    settings = (setting for ways in every if ways.knobs.micro_batch == least for setting in ways.settings())
    return min(settings, key=lambda setting: setting.peak_bytes)


def fastest_of(every: Sequence[Ways], memory: MemoryConfig, *, budget: int, tflops: float) -> Setting | None:
    """The fastest setting that fits, with NEGLIGIBLE for one whose pieces were measured; None where none fits.

    Of equally fast ones it is the first in order.

    Branch and bound (Land and Doig 1960): ways that can't be faster than what was found are not looked at.
    """
    bounds = [ways.least_seconds(memory, tflops) for ways in every]
    of_any, of_measured = _Fastest(), _Fastest()
    for number in sorted(range(len(every)), key=bounds.__getitem__):
        ways = every[number]
        if bounds[number] > of_any.seconds * (1 + NEGLIGIBLE):
            break
        for setting in ways.settings():
            if setting.peak_bytes <= budget:
                kept = keep_more(setting, ways, memory, budget)
                seconds, measured = kept.seconds(tflops), ways.costs.are_measured_at(kept.knobs.micro_batch)
                for fastest in (of_any, of_measured) if measured else (of_any,):
                    fastest.see(kept, seconds, number)
    return (of_measured if of_measured.seconds <= of_any.seconds * (1 + NEGLIGIBLE) else of_any).setting


@dataclass
class _Fastest:
    """The fastest setting seen, the first in order of those that are equally fast."""

    setting: Setting | None = None
    seconds: float = math.inf
    number: int = 0

    def see(self, setting: Setting, seconds: float, number: int) -> None:
        """Takes its place where this one is faster, or as fast and earlier in order."""
        if self.setting is None or (seconds, number) < (self.seconds, self.number):
            self.setting, self.seconds, self.number = setting, seconds, number


def keep_more(setting: Setting, ways: Ways, memory: MemoryConfig, budget: int) -> Setting:
    """The same with as many kept steps as fit."""
    most_kept = ways.rank_round.workload(setting.knobs).most_kept
    if memory.kept_steps != "auto" or not most_kept:
        return setting

    def keeping(steps: int) -> Setting:
        return ways.at(setting.knobs.model_copy(update={"kept_steps": steps}))

    low, high = 0, most_kept  # peaks never fall with kept steps: the largest that fits by halving
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if keeping(middle).peak_bytes <= budget else (low, middle - 1)
    return keeping(low)


def batches(rank_round: RankRound, work: Workload, memory: MemoryConfig, base: Knobs) -> Iterator[dict[str, int]]:
    """Rows of a piece and of the rollout."""
    pairs = max(1, work.gradient_steps) if work.minibatch_pairs is None else work.minibatch_pairs
    largest = math.ceil(rank_round.images * (1 if work.by_micro_batch else pairs))
    sizes = list(_sizes(largest)) if memory.micro_batch == "auto" else [base.micro_batch]
    for micro in sizes:
        rollout = micro if work.by_micro_batch else 4 * micro
        rollout = -(-rank_round.images // -(-rank_round.images // rollout))  # the same batches, less filled up
        yield {
            "micro_batch": micro,
            "rollout_batch": rollout if memory.rollout_batch == "auto" else base.rollout_batch,
        }


def _sizes(largest: int) -> Iterator[int]:
    """1 to 16, then steps of an eighth, up to 512: more fills no GPU better."""
    size = 1
    while size <= min(largest, 512):
        yield size
        size += max(1, size // 8)
