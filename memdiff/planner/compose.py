"""From short measured rounds to the peaks and FLOPs of a whole one, at any setting of the knobs.

What is there all the time is added up; what a phase needs for a while is affine in its rows; a kept step adds its
graph; stored states are counted. Rows: `micro_batch` in a piece, `rollout_batch` in the rollout, all of this rank's
images where REINFORCE scores them. In one pass REINFORCE's pieces are part of its rollout, and each image's gradient is
there from its sampling to the update.

An evaluation is a phase of its own. All of a rank's images of it are decoded at once, held-out rewards score them
beside the trained ones, and with an average of the weights (EMA) the working copies wait beside it. Its chain makes no
graph and stores nothing; REINFORCE's trajectory of the round is still there. Its prompts are encoded as a round's are,
which the phase `encode` counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from memdiff.memory.knobs import Knobs
from memdiff.memory.zero2 import FULL, States
from memdiff.methods.workload import Workload
from memdiff.planner.measured import Sizes
from memdiff.planner.piece_costs import TRANSIENT, PieceCosts
from memdiff.planner.rank_round import RankRound
from memdiff.runtime.memory_tags import MEMORY_TAGS, MemoryTag

PHASES = ("encode", "rollout", "reward", "train", "apply", "evaluate")


@dataclass(frozen=True)
class Estimate:
    """Bytes by phase and category on one GPU, FLOPs of a round on it, and what leaving and coming takes."""

    phases: Mapping[str, Mapping[MemoryTag, int]]
    flops: float
    flops_ideal: float
    moved_bytes: float  # over PCIe in a round
    host_bytes: int  # of a rank, beside its process
    host_waiting_bytes: int  # of them, what is there before the first round
    modules: Mapping[str, str] = field(default_factory=dict)

    def live(self, phase: str) -> int:
        """At the phase's peak."""
        return sum(self.phases[phase].values())

    @cached_property
    def peak_phase(self) -> str:
        """Of the most live bytes."""
        return max(self.phases, key=self.live)

    @cached_property
    def peak(self) -> int:
        """Most live bytes of any phase."""
        return self.live(self.peak_phase)


def estimate_round(rank_round: RankRound, knobs: Knobs, costs: PieceCosts, states: States) -> Estimate:
    """A whole round at this setting."""
    rank_round, sizes = rank_round.on(costs.sizes), costs.sizes
    rows, work = rank_round.rows(knobs), rank_round.workload(knobs)
    stored = work.states * (rows if work.by_micro_batch else rank_round.images)
    trajectory = (stored if work.replays else 0) * sizes.state_elements * rank_round.state_bytes
    always = _always(knobs, sizes, states, trajectory)
    phases = {phase: dict(always) for phase in PHASES}
    if not sizes.encoders:
        del phases["encode"]
    else:
        phases["encode"]["weights"] += costs.transient["encode"]["weights"].at(0)
        phases["encode"]["trajectory"] = 0
    _rollout(phases["rollout"], rank_round, work, knobs, costs)
    _reward(phases["reward"], rank_round, work, knobs, costs)
    if work.replays:
        _train(phases["train"], costs, rows, work.kept, built=work.by_micro_batch)
    if knobs.idle_unet == "host":
        # It leaves inside the phase: what was there before is part of its peak.
        before: dict[MemoryTag, int] = {**always, "activations": work.kept * costs.kept.at(rows)}
        phases["reward"] = max(phases["reward"], before, key=lambda parts: sum(parts.values()))
    if work.in_one_pass:
        if knobs.accumulators != "host":
            for phase in ("rollout", "reward", "train"):
                phases[phase]["gradients"] += rank_round.waiting(knobs) * states.accumulators
        phases["train"]["gradients"] += sizes.largest_elements * FULL  # an image's, multiplied, one by one
    phases["apply"]["engine buckets"] += states.engine_buckets
    if knobs.accumulators == "host":  # they come one by one
        phases["apply"]["gradients"] += sizes.largest_elements * FULL
    if rank_round.evaluated and costs.evaluation:
        phases["evaluate"] = _evaluate(always, rank_round, work, knobs, costs, states)
    else:
        del phases["evaluate"]
    flops, ideal = _flops(rank_round, work, knobs, costs)
    return Estimate(
        phases=phases,
        flops=flops,
        flops_ideal=ideal,
        moved_bytes=_moved(rank_round, work, knobs, sizes, states, trajectory),
        host_bytes=_on_host(rank_round, knobs, sizes, states, trajectory),
        host_waiting_bytes=_waiting_on_host(rank_round, knobs, sizes, states),
        modules=costs.modules,
    )


def _always(knobs: Knobs, sizes: Sizes, states: States, trajectory: int) -> dict[MemoryTag, int]:
    """What lies on the GPU in every phase."""
    return {
        "weights": sizes.unet,
        "gradients": 0 if knobs.accumulators == "host" else states.accumulators,
        "optimizer": states.optimizer_on_gpu,
        "method networks": sizes.own_networks,
        "engine buckets": states.engine_resident,
        "trajectory": 0 if knobs.trajectory == "host" else trajectory,
        "activations": 0,
        "decoder": 0 if knobs.idle_decoder == "host" else sizes.decoder,
        "reward": sizes.rewards + sizes.held_out if knobs.rewards == "gpu" else 0,
    }


def _flops(rank_round: RankRound, work: Workload, knobs: Knobs, costs: PieceCosts) -> tuple[float, float]:
    """(of a round, of one with nothing recomputed)."""
    rows = rank_round.rows(knobs)
    # In one pass the steps that are pulled are not rolled besides, in the first of the updates.
    batch = rows if work.by_micro_batch or work.in_one_pass else knobs.rollout_batch
    rolled = work.rolled - (work.gradient_steps if work.in_one_pass else 0)
    flops = rank_round.images * (
        _filled(rank_round.images, batch) * rolled * costs.forward
        + _filled(rank_round.images * work.pairs, rows)
        * (work.pulled * (costs.pull + costs.again) + work.again * costs.forward)
        + costs.scoring * work.scorings
    )
    scoring = (costs.scoring - costs.scoring_again) * work.scorings
    ideal = rank_round.images * (work.rolled * costs.forward + work.pulled * costs.pull + scoring)
    return flops, ideal


def _filled(count: float, batch: int) -> float:
    """Rows that are computed over valid rows, in batches of one shape."""
    batches = -(-count // batch)
    size = min(batch, count)
    return batches * size / count if count else 1.0


def _rollout(
    phase: dict[MemoryTag, int], rank_round: RankRound, work: Workload, knobs: Knobs, costs: PieceCosts
) -> None:
    if work.in_one_pass:
        _train(phase, costs, rank_round.rows(knobs), 0, built=False)
        return
    rows = knobs.micro_batch if work.by_micro_batch else min(knobs.rollout_batch, rank_round.images)
    if not work.kept:
        phase["activations"] += costs.transient["rollout without a graph"]["activations"].at(rows)
        return
    # The measured rollout keeps one graph: the peak is where the last kept one is finished.
    phase["activations"] += costs.transient["rollout"]["activations"].at(rows) + (work.kept - 1) * costs.kept.at(rows)


def _reward(
    phase: dict[MemoryTag, int], rank_round: RankRound, work: Workload, knobs: Knobs, costs: PieceCosts
) -> None:
    rows = knobs.micro_batch if work.by_micro_batch else rank_round.images
    transient = costs.transient["reward"]
    alone = work.by_micro_batch and len(transient["decoder"].points) == 1  # proportional to what is decoded at once
    decoded = min(rows, knobs.decode_batch) if alone else rows
    phase["decoder"] = costs.sizes.decoder + transient["decoder"].at(decoded)
    phase["activations"] += transient["activations"].at(rows)
    if work.by_micro_batch:
        phase["activations"] += (work.kept - 1) * costs.kept.at(rows)
    if work.scorings > 1:  # the UNet is asked between the scorings
        asked = costs.transient["rollout without a graph"]["activations"].at(
            min(knobs.rollout_batch, rank_round.images)
        )
        phase["activations"] = max(phase["activations"], asked)
    if knobs.rewards != "cpu":
        held_out = 0 if knobs.rewards == "idle_off" else costs.sizes.held_out  # not asked here, nor taken away
        phase["reward"] = costs.sizes.rewards + held_out + transient["reward"].at(min(rows, rank_round.chunk))
    if knobs.idle_unet == "host" and not work.kept:
        phase["weights"] = costs.sizes.unet_trained


def _evaluate(
    always: Mapping[MemoryTag, int],
    rank_round: RankRound,
    work: Workload,
    knobs: Knobs,
    costs: PieceCosts,
    states: States,
) -> dict[MemoryTag, int]:
    """The fullest of its three moments: the average takes its place, the chain runs, the images are scored."""
    sizes, images = costs.sizes, rank_round.evaluated
    # REINFORCE's trajectory is there until the next round; the direct methods' went with their micro-batch.
    here: dict[MemoryTag, int] = {**always, "trajectory": 0 if work.by_micro_batch else always["trajectory"]}
    here["weights"] += states.set_aside
    exchange: dict[MemoryTag, int] = {**here, "weights": here["weights"] + states.exchanging}
    chain, score = dict(here), dict(here)
    without_graph = costs.transient["rollout without a graph"]["activations"]
    chain["activations"] += without_graph.at(min(knobs.rollout_batch, images)) + images * sizes.state_elements * FULL
    for category, curve in costs.evaluation.items():
        score[category] += curve.at(images)
    score["decoder"] += sizes.decoder - always["decoder"]
    if knobs.rewards == "cpu":
        score["reward"] = 0
    else:
        score["reward"] += sizes.rewards + sizes.held_out - always["reward"]
    if knobs.idle_unet == "host":
        score["weights"] -= sizes.unet - sizes.unet_trained
    return max(exchange, chain, score, key=lambda parts: sum(parts.values()))


def _train(phase: dict[MemoryTag, int], costs: PieceCosts, rows: int, kept: int, *, built: bool) -> None:
    for category in TRANSIENT:
        phase[category] += costs.transient["train"][category].at(rows)
    if built:  # the measured step that was kept built its graph in the rollout
        phase["activations"] = max(phase["activations"], costs.transient["rollout"]["activations"].at(rows))
    phase["activations"] += max(0, kept - 1) * costs.kept.at(rows)


def _moved(rank_round: RankRound, work: Workload, knobs: Knobs, sizes: Sizes, states: States, trajectory: int) -> float:
    """Bytes over PCIe in a round, both ways."""
    visits = (
        -(-rank_round.images // knobs.micro_batch) if work.by_micro_batch else 1
    )  # of images to decoder and rewards
    pieces = -(-rank_round.images // rank_round.rows(knobs)) * work.gradient_steps
    moved = 0.0
    moved += 2 * visits * sizes.rewards if knobs.rewards == "idle_off" else 0
    moved += visits * (sizes.unet - sizes.unet_trained) if knobs.idle_unet == "host" else 0  # frozen: one way
    moved += visits * sizes.decoder if knobs.idle_decoder == "host" else 0
    moved += 2 * trajectory * visits if knobs.trajectory == "host" else 0
    moved += pieces * states.accumulators if knobs.accumulators == "host" else 0
    return moved + (3 * states.accumulators if states.offloaded else 0)


def _on_host(rank_round: RankRound, knobs: Knobs, sizes: Sizes, states: States, trajectory: int) -> int:
    host_bytes = _waiting_on_host(rank_round, knobs, sizes, states)
    host_bytes += rank_round.waiting(knobs) * states.accumulators if knobs.accumulators == "host" else 0
    host_bytes += trajectory if knobs.trajectory == "host" else 0
    host_bytes += sizes.elements * FULL if states.set_aside else 0  # the average, gathered for an evaluation
    return host_bytes + (sizes.unet - sizes.unet_trained if knobs.idle_unet == "host" else 0)


def _waiting_on_host(rank_round: RankRound, knobs: Knobs, sizes: Sizes, states: States) -> int:
    host_bytes = sizes.encoders
    host_bytes += states.optimizer if states.offloaded else 0
    host_bytes += states.accumulators if knobs.accumulators == "host" else 0
    host_bytes += sizes.rewards + sizes.held_out if knobs.rewards != "gpu" else 0
    host_bytes += sizes.unet if rank_round.method.needs_base and not rank_round.separable else 0  # as it was at first
    return host_bytes + (sizes.decoder if knobs.idle_decoder == "host" else 0)


def total(parts: Mapping[MemoryTag, int]) -> dict[str, int]:
    """Those that are there, in the order in which people read them."""
    return {category: parts[category] for category in MEMORY_TAGS if parts.get(category)}
