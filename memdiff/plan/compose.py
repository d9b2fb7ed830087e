"""From short measured rounds to the peaks and FLOPs of a whole one, at any setting of the knobs.

What is there all the time is added up; what a phase needs for a while is affine in its rows; a kept step adds its
graph; stored states are counted. Rows: `micro_batch` in a piece, `rollout_batch` in the rollout, all of this rank's
images where REINFORCE scores them.

An evaluation is a phase of its own. All of a rank's images of it are decoded at once, held-out rewards score them
beside the trained ones, and with an average of the weights (EMA) the working copies wait beside it. Its chain makes no
graph and stores nothing; REINFORCE's trajectory of the round is still there. Its prompts are encoded as a round's are,
which the phase `encode` counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memdiff.counted import CATEGORIES, Category
from memdiff.memory.knobs import Knobs
from memdiff.memory.states import FULL, States
from memdiff.objectives.config import AlignPropConfig, DraftConfig, MethodConfig, ReflConfig, ReinforceConfig
from memdiff.plan.measure import Measured, Sizes

PHASES = ("encode", "rollout", "reward", "train", "apply", "evaluate")
TRANSIENT: tuple[Category, ...] = ("weights", "activations", "decoder", "reward")


@dataclass(frozen=True)
class Job:
    """What a round of one rank comes to."""

    method: MethodConfig
    images: int  # of this rank
    steps: int  # K
    weighted_steps: int  # of them, that REINFORCE takes a gradient at
    state_bytes: int  # of one element of a stored state
    chunk: int  # images that rewards score at once
    evaluated: int  # images of this rank in one evaluation; 0: there is none

    @property
    def direct(self) -> bool:
        """Whether the reward itself is differentiated."""
        return not isinstance(self.method, ReinforceConfig)

    @property
    def samples(self) -> int:
        """Times that the last step is taken for its gradient: DRaFT-LV's noisings, else 1."""
        return (self.method.noise_samples or 1) if isinstance(self.method, DraftConfig) else 1

    @property
    def rolled(self) -> float:
        """Steps taken forward an image without a graph of its own, expected over the method's draws."""
        if isinstance(self.method, ReflConfig):
            return (self.method.first_step + self.method.last_step) / 2 + 1
        return self.steps + self.baseline_steps + (self.samples if self.samples > 1 else 0)

    @property
    def baseline_steps(self) -> int:
        """Steps whose predicted image is scored for a baseline."""
        asked = isinstance(self.method, ReinforceConfig) and self.method.baseline != "none"
        return self.weighted_steps if asked else 0

    def pulled(self, kept_steps: int) -> tuple[float, float]:
        """(steps pulled back an image, those of them whose forward runs again), expected over the method's draws."""
        if isinstance(self.method, ReinforceConfig):
            return float(self.method.inner_updates * self.weighted_steps), 0.0
        if isinstance(self.method, ReflConfig):
            return 1.0, 0.0 if kept_steps else 1.0
        most = len(self.method.differentiated(self.steps))
        drawn = isinstance(self.method, AlignPropConfig) and self.method.truncation == "random"
        depths = range(1, most + 1) if drawn else [most]
        mean = sum(depths) / len(depths)
        again = sum(max(0, depth - kept_steps) for depth in depths) / len(depths)
        return self.samples * mean, self.samples * again

    def most_kept(self) -> int:
        """The most steps whose graph it can use to keep."""
        if isinstance(self.method, ReinforceConfig):
            return 0
        return 1 if isinstance(self.method, ReflConfig) else len(self.method.differentiated(self.steps))

    def stored_states(self, rows: int) -> int:
        """x_t kept for the way back, over rows."""
        if isinstance(self.method, ReinforceConfig):
            return (self.steps + 1) * self.images
        return max(1, len(self.method.differentiated(self.steps))) * rows


@dataclass(frozen=True)
class Curve:
    """Bytes by rows, through measured points: exact at them, proportional where there is one.

    A piece's peak is the larger of several straight lines (at few rows the gradients of the weights, at many the
    activations). Elsewhere the line through the two largest points is followed, and never below a smaller point: that
    is a guess from below, so a plan measures what it chooses.
    """

    points: tuple[tuple[int, int], ...]  # (rows, bytes), rows rising

    def at(self, rows: float) -> int:
        """Never less than nothing."""
        if len(self.points) == 1:
            return max(0, round(self.points[0][1] * rows / self.points[0][0]))
        (n, low), (m, high) = self.points[-2:]
        line = round(low + (high - low) * (rows - n) / (m - n))
        known = dict(self.points).get(rows)  # pyright: ignore[reportArgumentType]
        return known if known is not None else max(0, line, *(size for less, size in self.points if less < rows))

    def and_point(self, rows: int, size: int) -> "Curve":
        """With one more."""
        return Curve(tuple(sorted({**dict(self.points), rows: size}.items())))


@dataclass(frozen=True)
class Graphs:
    """What the pieces of one way of recomputing need, from measured rounds of one or two sizes."""

    sizes: Sizes
    transient: Mapping[str, Mapping[Category, Curve]]  # by phase
    evaluation: Mapping[Category, Curve]  # over its images; empty where none was measured
    kept: Curve  # one step's graph between forward and pull
    modules: Mapping[str, str]  # at work at each phase's peak
    forward: float  # FLOPs of one step of one image
    pull: float  # of its backward, nothing recomputed
    again: float  # of what checkpoints run again in it
    scoring: float  # of decoding and scoring one image, and back where the method does
    scoring_again: float

    @classmethod
    def of(cls, measured: Sequence[Measured], *, direct: bool) -> "Graphs":
        """`measured` differ in their images only."""
        first = measured[0]
        sizes = first.sizes
        baseline = {"weights": sizes.unet, "activations": 0, "decoder": sizes.decoder, "reward": sizes.rewards}
        transient: dict[str, dict[Category, Curve]] = {
            phase: {
                category: Curve(
                    tuple((m.images, m.peaks[phase].categories[category] - baseline[category]) for m in measured)
                )
                for category in TRANSIENT
            }
            for phase in ("rollout", "reward", "train")
        }
        # Texts are encoded a fixed number at a time.
        encoding = first.peaks["encode"].categories["weights"] - first.sizes.unet
        transient["encode"] = {"weights": Curve(((1, encoding), (2, encoding)))}
        transient["rollout without a graph"] = {
            "activations": Curve(tuple((m.images, m.without_graph_bytes) for m in measured))
        }
        images, pulled = first.images, first.differentiated
        forward = first.flops["rollout"] / images / first.rolled
        trained, again = first.flops["train"] / images, first.recomputed_flops.get("train", 0) / images
        # One step of a direct method was kept, the others ran forward again; REINFORCE's forward there is its only one.
        forwards = max(0, pulled - first.kept_steps) * forward if direct else 0.0
        return cls(
            sizes=first.sizes,
            transient=transient,
            evaluation=next((_evaluation(m) for m in measured if m.evaluated_images), {}),
            kept=Curve(tuple((m.images, m.kept_bytes) for m in measured)),
            modules={phase: peak.module for phase, peak in first.peaks.items()},
            forward=forward,
            pull=(trained - again - forwards) / pulled,
            again=again / pulled,
            scoring=first.flops.get("reward", 0) / images,
            scoring_again=first.recomputed_flops.get("reward", 0) / images,
        )


def _evaluation(measured: Measured) -> Mapping[Category, Curve]:
    """Proportional to the images: it is measured at as many as there are, up to a limit."""
    return {category: Curve(((measured.evaluated_images, size),)) for category, size in measured.evaluated.items()}


@dataclass(frozen=True)
class Outlook:
    """Bytes by phase and category on one GPU, FLOPs of a round on it, and what leaving and coming takes."""

    phases: Mapping[str, Mapping[Category, int]]
    flops: float
    flops_ideal: float
    moved_bytes: float  # over PCIe in a round
    host_bytes: int
    modules: Mapping[str, str] = field(default_factory=dict)

    def live(self, phase: str) -> int:
        """At the phase's peak."""
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """Of the most live bytes."""
        return max(self.phases, key=self.live)

    @property
    def peak(self) -> int:
        """Most live bytes of any phase."""
        return self.live(self.peak_phase)


def look_ahead(job: Job, knobs: Knobs, graphs: Graphs, states: States) -> Outlook:
    """A whole round at this setting."""
    sizes, rows, kept = graphs.sizes, knobs.micro_batch, min(knobs.kept_steps, job.most_kept())
    trajectory = job.stored_states(rows) * sizes.state_elements * job.state_bytes
    always: dict[Category, int] = {
        "weights": sizes.unet,
        "gradients": 0 if knobs.accumulators_on_host else states.accumulators,
        "optimizer": states.optimizer_on_gpu,
        "engine buckets": states.engine_resident,
        "trajectory": 0 if knobs.trajectory_on_host else trajectory,
        "activations": 0,
        "decoder": 0 if knobs.decoder_off_when_idle else sizes.decoder,
        "reward": 0 if knobs.rewards_on_host or knobs.rewards_off_when_idle else sizes.rewards + sizes.held_out,
    }
    phases = {phase: dict(always) for phase in PHASES}
    if not sizes.encoders:
        del phases["encode"]
    else:
        phases["encode"]["weights"] += graphs.transient["encode"]["weights"].at(0)
        phases["encode"]["trajectory"] = 0
    _rollout(phases["rollout"], job, knobs, graphs, kept)
    _reward(phases["reward"], job, knobs, graphs, kept)
    _train(phases["train"], graphs, rows, kept, built=job.direct)
    if knobs.unet_off_when_idle:
        # It leaves inside the phase: what was there before is part of its peak.
        before: dict[Category, int] = {**always, "activations": kept * graphs.kept.at(rows)}
        phases["reward"] = max(phases["reward"], before, key=lambda parts: sum(parts.values()))
    phases["apply"]["engine buckets"] += states.engine_buckets
    if knobs.accumulators_on_host:  # they come one by one
        phases["apply"]["gradients"] += sizes.largest_elements * FULL
    if job.evaluated and graphs.evaluation:
        phases["evaluate"] = _evaluate(always, job, knobs, graphs, states)
    else:
        del phases["evaluate"]
    pulled, again = job.pulled(kept)
    flops = job.images * (
        _filled(job.images, rows if job.direct else knobs.rollout_batch) * job.rolled * graphs.forward
        + _filled(job.images * (1 if job.direct else job.weighted_steps), rows)
        * (pulled * (graphs.pull + graphs.again) + again * graphs.forward)
        + graphs.scoring * (1 + job.baseline_steps)
    )
    scoring = (graphs.scoring - graphs.scoring_again) * (1 + job.baseline_steps)
    ideal = job.images * (job.rolled * graphs.forward + pulled * graphs.pull + scoring)
    return Outlook(
        phases=phases,
        flops=flops,
        flops_ideal=ideal,
        moved_bytes=_moved(job, knobs, sizes, states, trajectory),
        host_bytes=_on_host(knobs, sizes, states, trajectory),
        modules=graphs.modules,
    )


def _filled(count: int, batch: int) -> float:
    """Rows that are computed over rows that are meant, in batches of one shape."""
    batches = -(-count // batch)
    size = min(batch, count)
    return batches * size / count if count else 1.0


def _rollout(phase: dict[Category, int], job: Job, knobs: Knobs, graphs: Graphs, kept: int) -> None:
    rows = min(knobs.rollout_batch, job.images) if not job.direct else knobs.micro_batch
    if not kept:
        phase["activations"] += graphs.transient["rollout without a graph"]["activations"].at(rows)
        return
    # The measured rollout keeps one graph: the peak is where the last kept one is finished.
    phase["activations"] += graphs.transient["rollout"]["activations"].at(rows) + (kept - 1) * graphs.kept.at(rows)


def _reward(phase: dict[Category, int], job: Job, knobs: Knobs, graphs: Graphs, kept: int) -> None:
    rows = knobs.micro_batch if job.direct else job.images
    transient = graphs.transient["reward"]
    alone = job.direct and len(transient["decoder"].points) == 1  # proportional to what is decoded at once
    decoded = min(rows, knobs.decode_batch) if alone else rows
    phase["decoder"] = graphs.sizes.decoder + transient["decoder"].at(decoded)
    phase["activations"] += transient["activations"].at(rows)
    if job.direct:
        phase["activations"] += (kept - 1) * graphs.kept.at(rows)
    if job.baseline_steps:  # the UNet is asked between the scorings
        asked = graphs.transient["rollout without a graph"]["activations"].at(min(knobs.rollout_batch, job.images))
        phase["activations"] = max(phase["activations"], asked)
    if not knobs.rewards_on_host:
        held_out = 0 if knobs.rewards_off_when_idle else graphs.sizes.held_out  # not asked here, nor taken away
        phase["reward"] = graphs.sizes.rewards + held_out + transient["reward"].at(min(rows, job.chunk))
    if knobs.unet_off_when_idle and not kept:
        phase["weights"] = graphs.sizes.unet_trained


def _evaluate(
    always: Mapping[Category, int], job: Job, knobs: Knobs, graphs: Graphs, states: States
) -> dict[Category, int]:
    """The fullest of its three moments: the average takes its place, the chain runs, the images are scored."""
    sizes, images = graphs.sizes, job.evaluated
    # REINFORCE's trajectory is there until the next round; the direct methods' went with their micro-batch.
    here: dict[Category, int] = {**always, "trajectory": 0 if job.direct else always["trajectory"]}
    here["weights"] += states.set_aside
    exchange: dict[Category, int] = {**here, "weights": here["weights"] + states.exchanging}
    chain, score = dict(here), dict(here)
    without_graph = graphs.transient["rollout without a graph"]["activations"]
    chain["activations"] += without_graph.at(min(knobs.rollout_batch, images)) + images * sizes.state_elements * FULL
    for category, curve in graphs.evaluation.items():
        score[category] += curve.at(images)
    score["decoder"] += sizes.decoder - always["decoder"]
    if knobs.rewards_on_host:
        score["reward"] = 0
    else:
        score["reward"] += sizes.rewards + sizes.held_out - always["reward"]
    if knobs.unet_off_when_idle:
        score["weights"] -= sizes.unet - sizes.unet_trained
    return max(exchange, chain, score, key=lambda parts: sum(parts.values()))


def _train(phase: dict[Category, int], graphs: Graphs, rows: int, kept: int, *, built: bool) -> None:
    for category in TRANSIENT:
        phase[category] += graphs.transient["train"][category].at(rows)
    if built:  # the measured step that was kept built its graph in the rollout
        phase["activations"] = max(phase["activations"], graphs.transient["rollout"]["activations"].at(rows))
    phase["activations"] += max(0, kept - 1) * graphs.kept.at(rows)


def _moved(job: Job, knobs: Knobs, sizes: Sizes, states: States, trajectory: int) -> float:
    """Bytes over PCIe in a round, both ways."""
    visits = -(-job.images // knobs.micro_batch) if job.direct else 1  # times that images are decoded and scored
    pieces = -(-job.images // knobs.micro_batch) * (len_pulled(job) if job.direct else job.weighted_steps)
    moved = 0.0
    moved += 2 * visits * sizes.rewards if knobs.rewards_off_when_idle else 0
    moved += visits * (sizes.unet - sizes.unet_trained) if knobs.unet_off_when_idle else 0  # frozen: one way
    moved += visits * sizes.decoder if knobs.decoder_off_when_idle else 0
    moved += 2 * trajectory * (visits if job.direct else 1) if knobs.trajectory_on_host else 0
    moved += pieces * states.accumulators if knobs.accumulators_on_host else 0
    return moved + (3 * states.accumulators if states.offloaded else 0)


def len_pulled(job: Job) -> int:
    """Pieces of one micro-batch's way back."""
    return max(1, round(job.pulled(0)[0]))


def _on_host(knobs: Knobs, sizes: Sizes, states: States, trajectory: int) -> int:
    found = sizes.encoders
    found += states.optimizer if states.offloaded else 0
    found += states.accumulators if knobs.accumulators_on_host else 0
    found += trajectory if knobs.trajectory_on_host else 0
    found += sizes.rewards + sizes.held_out if knobs.rewards_on_host or knobs.rewards_off_when_idle else 0
    found += sizes.elements * FULL if states.set_aside else 0  # the average, gathered for an evaluation
    found += sizes.unet - sizes.unet_trained if knobs.unet_off_when_idle else 0
    return found + (sizes.decoder if knobs.decoder_off_when_idle else 0)


def total(parts: Mapping[Category, int]) -> dict[str, int]:
    """Those that are there, in the order in which people read them."""
    return {category: parts[category] for category in CATEGORIES if parts.get(category)}
