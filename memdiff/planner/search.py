"""The settings of the knobs, and which of those that fit is the fastest.

Settings are compared by estimated seconds: FLOPs at what the model's family reaches on the card, bytes moved over
PCIe, and a piece's fixed costs, a tenth of a one-image piece. FLOPs outweigh the rest, so that what is chosen is the
setting with the least recomputation, of those the one that moves least, of those the one with the largest pieces.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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

    @property
    def peak_bytes(self) -> int:
        """What the allocator will have reserved: live bytes and the allowance."""
        return self.estimate.peak + self.allowance_bytes

    @property
    def allowance_bytes(self) -> int:
        """Reserved beyond what is live."""
        return allowance_bytes(self.estimate.peak, self.knobs)

    @property
    def moved_seconds(self) -> float:
        """Of a round, over PCIe."""
        return self.estimate.moved_bytes / PCIE_BYTES_A_SECOND

    def seconds(self, tflops: float) -> float:
        """Of a round at so many TFLOP/s, as settings are compared."""
        arithmetic = self.estimate.flops / (tflops * 1e12)
        return arithmetic * (1 + FIXED_SHARE / self.knobs.micro_batch) + self.moved_seconds


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


def all_settings(
    rank_round: RankRound, memory: MemoryConfig, costs: Mapping[Recompute, PieceCosts], states_of: StatesOf
) -> Iterator[Setting]:
    """Every setting that the recipe leaves open, with no kept steps where it doesn't say how many."""
    base = resolved(memory)
    work = rank_round.workload(base)
    for recompute, piece_costs in costs.items():
        if any(value not in left_open(memory, name) for name, value in zip(MEASURED, recompute, strict=True)):
            continue
        has = situation(work, piece_costs.sizes)
        placed = [left_open(memory, name, has) for name in PLACED]
        for batch, *values in product(batches(rank_round, work, memory, base), *placed):
            chosen: dict[str, Any] = {**batch, **dict(zip(MEASURED + PLACED, (*recompute, *values), strict=True))}
            asked = memory.one_pass != "auto" or not chosen["one_pass"]
            if not asked and not _worth_one_pass(rank_round, batch["micro_batch"], piece_costs):
                continue
            knobs = base.model_copy(update=chosen)
            yield Setting(knobs, estimate_round(rank_round, knobs, piece_costs, states_of(knobs.offload_optimizer)))


def _worth_one_pass(rank_round: RankRound, rows: int, piece_costs: PieceCosts) -> bool:
    """Without an adapter its pieces are of one image: they have to fill a GPU, and are looked at once."""
    return rank_round.separable or (piece_costs.forward >= ENOUGH_FLOPS and rows == 1)


def best(
    settings: list[Setting],
    rank_round: RankRound,
    memory: MemoryConfig,
    costs: Mapping[Recompute, PieceCosts],
    states_of: StatesOf,
    *,
    budget: int,
    tflops: float,
) -> tuple[Setting, bool]:
    """(the fastest setting that fits, True), or (the smallest of all, False)."""
    fitting = [keep_more(s, rank_round, memory, costs, states_of, budget) for s in settings if s.peak_bytes <= budget]
    if not fitting:
        return min(settings, key=lambda setting: setting.peak_bytes), False
    return min(fitting, key=lambda setting: setting.seconds(tflops)), True


def keep_more(
    setting: Setting,
    rank_round: RankRound,
    memory: MemoryConfig,
    costs: Mapping[Recompute, PieceCosts],
    states_of: StatesOf,
    budget: int,
) -> Setting:
    """The same with as many kept steps as fit."""
    most_kept = rank_round.workload(setting.knobs).most_kept
    if memory.kept_steps != "auto" or not most_kept:
        return setting
    piece_costs, states = costs[recompute_of(setting.knobs)], states_of(setting.knobs.offload_optimizer)

    def keeping(steps: int) -> Setting:
        kept = setting.knobs.model_copy(update={"kept_steps": steps})
        return Setting(kept, estimate_round(rank_round, kept, piece_costs, states))

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
