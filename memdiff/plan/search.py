"""The settings of the knobs, and which of those that fit is the fastest.

Settings are compared by estimated seconds: FLOPs at the card's usual share of its peak, bytes moved over PCIe, and a
piece's fixed costs, taken as a tenth of a one-image piece. FLOPs outweigh the rest, so that what is chosen is the
setting with the least recomputation, of those the one that moves least, of those the one with the largest pieces.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from memdiff.memory.config import MemoryConfig
from memdiff.memory.gpus import FRAGMENTATION, MATRIX_SHARE, PCIE_BYTES_A_SECOND, WORKSPACE_BYTES
from memdiff.memory.knobs import Knobs, idle_place
from memdiff.memory.states import States
from memdiff.models.config import ActivationCheckpointing
from memdiff.plan.compose import Outlook, look_ahead
from memdiff.plan.graphs import Graphs
from memdiff.plan.job import Job

ENOUGH_FLOPS = 2e11  # of one image's step: pieces of one image fill a GPU from about there on (not measured)
FIXED_SHARE = 0.1  # of a one-image piece: launches, sums of gradients; a piece of B images has it once
Way = tuple[ActivationCheckpointing, int]  # (what of the UNet is recomputed, passes of guidance)
StatesOf = Callable[[bool], States]  # of whether the optimizer is offloaded


@dataclass(frozen=True)
class Setting:
    """Knobs and what comes of them."""

    knobs: Knobs
    outlook: Outlook

    @property
    def peak_bytes(self) -> int:
        """What the allocator will have reserved: live bytes, fragmentation, workspace."""
        return held(self.outlook.peak)

    @property
    def moved_seconds(self) -> float:
        """Of a round, over PCIe."""
        return self.outlook.moved_bytes / PCIE_BYTES_A_SECOND

    def seconds(self, tflops: float) -> float:
        """Of a round, estimated."""
        arithmetic = self.outlook.flops / (tflops * 1e12 * MATRIX_SHARE)
        return arithmetic * (1 + FIXED_SHARE / self.knobs.micro_batch) + self.moved_seconds


def held(live: int) -> int:
    """Bytes that torch's allocator holds for so many live ones."""
    return int(live * (1 + FRAGMENTATION)) + WORKSPACE_BYTES


def all_settings(
    job: Job, memory: MemoryConfig, base: Knobs, graphs: Mapping[Way, Graphs], states_of: StatesOf
) -> Iterator[Setting]:
    """Every setting that the recipe leaves open, with the most kept steps left to `fitting`."""
    for way, graph in graphs.items():
        checkpointing, passes = way
        if memory.activation_checkpointing not in ("auto", checkpointing) or memory.guidance_passes not in (
            "auto",
            passes,
        ):
            continue
        for batch, one_pass, choice in product(
            batches(job, memory, base), _one_pass(job, memory, graph), _places(memory, graph)
        ):
            if one_pass and not job.separable and memory.one_pass == "auto" and batch["micro_batch"] > 1:
                continue  # its pieces are of one image: it is looked at once
            knobs = replace(
                base,
                activation_checkpointing=checkpointing,
                guidance_passes=passes,
                one_pass=one_pass,
                **batch,
                **choice,
            )
            states = states_of(knobs.offload_optimizer)
            yield Setting(knobs, look_ahead(job, knobs, graph, states))


def best(
    settings: list[Setting],
    job: Job,
    memory: MemoryConfig,
    graphs: Mapping[Way, Graphs],
    states_of: StatesOf,
    *,
    budget: int,
    tflops: float,
) -> tuple[Setting, bool]:
    """(the fastest setting that fits, True), or (the smallest of all, False)."""
    fitting = [keep_more(s, job, memory, graphs, states_of, budget) for s in settings if s.peak_bytes <= budget]
    if not fitting:
        return min(settings, key=lambda setting: setting.peak_bytes), False
    return min(fitting, key=lambda setting: setting.seconds(tflops)), True


def keep_more(
    setting: Setting, job: Job, memory: MemoryConfig, graphs: Mapping[Way, Graphs], states_of: StatesOf, budget: int
) -> Setting:
    """The same with as many kept steps as fit."""
    if memory.kept_steps != "auto" or not job.most_kept():
        return setting
    knobs = setting.knobs
    graph = graphs[(knobs.activation_checkpointing, knobs.guidance_passes)]
    states = states_of(knobs.offload_optimizer)

    def keeping(steps: int) -> Setting:
        kept = replace(knobs, kept_steps=steps)
        return Setting(kept, look_ahead(job, kept, graph, states))

    low, high = 0, job.most_kept()  # peaks never fall with kept steps: the largest that fits by halving
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if keeping(middle).peak_bytes <= budget else (low, middle - 1)
    return keeping(low)


def batches(job: Job, memory: MemoryConfig, base: Knobs) -> Iterator[dict[str, int]]:
    """Rows of a piece and of the rollout."""
    largest = job.images if job.direct else job.images * max(1, job.weighted_steps)
    sizes = list(_sizes(largest)) if memory.micro_batch == "auto" else [base.micro_batch]
    for micro in sizes:
        rollout = micro if job.direct else 4 * micro
        rollout = -(-job.images // -(-job.images // rollout))  # the same batches, less filled up
        yield {
            "micro_batch": micro,
            "rollout_batch": rollout if memory.rollout_batch == "auto" else base.rollout_batch,
        }


def _one_pass(job: Job, memory: MemoryConfig, graphs: Graphs) -> tuple[bool, ...]:
    """Whether REINFORCE takes its gradients while it samples."""
    if memory.one_pass != "auto":
        return (memory.one_pass,)
    filled = job.separable or graphs.forward >= ENOUGH_FLOPS
    return (False, True) if job.may_take_one_pass and filled else (False,)


def _sizes(largest: int) -> Iterator[int]:
    """1 to 16, then steps of an eighth, up to 512: more fills no GPU better."""
    size = 1
    while size <= min(largest, 512):
        yield size
        size += max(1, size // 8)


def _places(memory: MemoryConfig, graphs: Graphs) -> Iterator[dict[str, Any]]:
    """Where things wait. What is not there doesn't leave."""
    sizes = graphs.sizes
    frozen = sizes.unet > sizes.unet_trained
    trajectory = _open(memory.trajectory, ("gpu", "host"))
    accumulators = _open(memory.accumulators, ("gpu", "host"))
    offload = (False, True) if memory.offload_optimizer == "auto" else (memory.offload_optimizer,)
    idle = _open(idle_place(memory), ("gpu", "host"))
    here: tuple[str, ...] = ("gpu",)
    rewards = _open(memory.rewards, ("gpu", "idle_off") if sizes.rewards else here)
    names = ("trajectory", "accumulators", "offload_optimizer", "idle_unet", "idle_decoder", "rewards")
    for values in product(
        trajectory, accumulators, offload, idle if frozen else here, idle if sizes.decoder else here, rewards
    ):
        yield dict(zip(names, values, strict=True))


def _open(value: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    return choices if value == "auto" else (value,)
