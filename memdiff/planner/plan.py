"""The plan of a recipe on a card: measured pieces, the fastest setting that fits, what would help where none does."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import yaml

from memdiff.engine.ds_config import make_ds_config
from memdiff.memory.gpus import CARDS, FRAGMENTATION, WORKSPACE_BYTES, Gpu
from memdiff.memory.knobs import Knobs, resolved
from memdiff.memory.zero2 import States, training_states
from memdiff.models.config import DdpmConfig, EmbeddedConfig, Precision
from memdiff.models.load import embedded_source
from memdiff.planner.advice import Change, changes, sentences, three_best
from memdiff.planner.compose import total
from memdiff.planner.dry_run import Measured, measure, resident
from memdiff.planner.piece_costs import PieceCosts
from memdiff.planner.processes import side_by_side
from memdiff.planner.rank_round import RankRound, rank_round_of, sizes_to_measure
from memdiff.planner.search import MEASURED, Recompute, Setting, all_settings, best, left_open, recompute_of
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.units import GIB

VERSION = 2  # of plan.json: its knobs are a recipe's section `memory`
REFERENCE_TFLOPS = 65.0  # a T4, where only a budget is given
MOST_EVALUATED = 64  # images of an evaluation that are scored on fake tensors; for more its bytes are multiplied


@dataclass(frozen=True)
class Plan:
    """What a run will need on each GPU. Bytes, but where a name says otherwise."""

    fits: bool
    budget_bytes: int
    peak_bytes: int
    peak_phase: str
    peak_module: str
    items: Mapping[str, int]  # of the peak
    phases: Mapping[str, int]  # live bytes of each
    knobs: Mapping[str, Any]
    flops: float  # of a round on one GPU
    flops_ideal: float  # nothing recomputed; of REINFORCE a rollout and its replays: one pass is below it
    smallest_budget_bytes: int  # at which some setting fits
    host_bytes: int  # a rank's, beside its process
    moved_seconds: float  # a round, over PCIe
    round_seconds: float  # estimated
    hours: float  # of the whole run, estimated
    gpu: str | None
    ranks: int
    precision: str
    changes: tuple[Change, ...] = field(default_factory=tuple)
    notes: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """As `memdiff plan --json` prints it and plan.json holds it."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Plan":
        """Rebuilds the plan from what `to_json` returned."""
        parsed = {"changes": tuple(Change(**c) for c in content["changes"]), "notes": tuple(content["notes"])}
        return cls(**{key: value for key, value in content.items() if key != "version"} | parsed)

    def to_yaml(self) -> str:
        """The recipe's section `memory` as it was chosen, after a line that says what comes of it."""
        said = "fits" if self.fits else "does not fit"
        head = (
            f"# {said}: {self.peak_bytes / GIB:.2f} of {self.budget_bytes / GIB:.2f} GiB on each of {self.ranks} GPUs"
        )
        return f"{head}\n{yaml.safe_dump({'memory': dict(self.knobs)}, sort_keys=False)}"

    def suggestions(self) -> list[str]:
        """What would save most, for a run that ran out of memory."""
        return three_best(self.changes)

    def chosen(self) -> Knobs:
        """The knobs to run with."""
        return Knobs(**self.knobs)


def make_plan(
    recipe: Recipe,
    *,
    budget_bytes: int,
    ranks: int = 1,
    gpu: Gpu | None = None,
    precision: str | None = None,
    processes: int = 1,
) -> Plan:
    """On `ranks` GPUs whose allocator may hold `budget_bytes` each. Raises ConfigError for what can't be planned."""
    precision = precision or planned_precision(recipe.model.precision)
    rank_round = rank_round_of(recipe, ranks=ranks, precision=precision)
    rounds = measure_recomputes(recipe, rank_round, precision, processes=processes)
    while True:
        costs = {recompute: PieceCosts.of(measured) for recompute, measured in rounds.items()}
        plan = choose(recipe, costs, budget_bytes=budget_bytes, ranks=ranks, gpu=gpu, precision=precision)
        knobs = plan.chosen()
        measured = rounds[recompute_of(knobs)]
        if any(each.images == knobs.micro_batch for each in measured) or len(measured) == 1:
            return plan
        # What was chosen lay between measured sizes: it is measured itself, and the choice made again.
        measured.append(_round(recipe, knobs, rank_round, precision, knobs.micro_batch))
        measured.sort(key=lambda each: each.images)


def choose(
    recipe: Recipe,
    costs: Mapping[Recompute, PieceCosts],
    *,
    budget_bytes: int,
    ranks: int,
    gpu: Gpu | None,
    precision: str,
) -> Plan:
    """The plan from what was measured: arithmetic alone."""
    rank_round = rank_round_of(recipe, ranks=ranks, precision=precision)
    sizes = next(iter(costs.values())).sizes

    # The size that the engine will be given: DeepSpeed allocates it in full, however little is in it.
    bucket = make_ds_config(recipe.optimizer, precision=precision, offload=False, trainable_elements=sizes.elements)[
        "zero_optimization"
    ]["reduce_bucket_size"]

    def states_of(offload: bool, *, bits: Literal[8, 32] | None = None, over: int = ranks) -> States:
        return training_states(
            sizes.elements,
            ranks=over,
            half=precision != "fp32",
            bits=bits or recipe.optimizer.bits,
            ema=recipe.optimizer.ema is not None,
            offload=offload,
            bucket_elements=bucket,
            largest_elements=sizes.largest_elements,
        )

    tflops = gpu.peak_tflops if gpu else REFERENCE_TFLOPS
    settings = list(all_settings(rank_round, recipe.memory, costs, states_of))
    setting, fits = best(settings, rank_round, recipe.memory, costs, states_of, budget=budget_bytes, tflops=tflops)
    smallest = min(candidate.peak_bytes for candidate in settings)
    notes = sentences(recipe, setting, sizes, states_of, ranks=ranks, fits=fits, budget=budget_bytes, smallest=smallest)
    if not fits:
        notes += [_cards_that_would(smallest, ranks)]
    return _as_plan(
        recipe, setting, fits=fits, budget=budget_bytes, smallest=smallest, tflops=tflops, gpu=gpu, ranks=ranks,
        precision=precision, notes=notes, changed=changes(setting, rank_round, costs, states_of),
    )  # fmt: skip


def measure_recomputes(
    recipe: Recipe, rank_round: RankRound, precision: str, *, processes: int = 1
) -> dict[Recompute, list[Measured]]:
    """The ways of recomputing that the recipe leaves open, each measured at one size or several.

    With more than one of `processes` they run side by side, in forks: not in a process that uses CUDA or threads.
    """
    values = (left_open(recipe.memory, name) for name in MEASURED)
    measurements: dict[Recompute, list[Measured]] = {
        recompute: [] for recompute in product(*values) if _possible(recipe, recompute)
    }
    sizes = sizes_to_measure(recipe, rank_round)
    tasks = [(recompute, images) for images in sizes for recompute in measurements]

    def run(recompute: Recompute, images: int) -> Measured:
        knobs = resolved(recipe.memory).model_copy(update=dict(zip(MEASURED, recompute, strict=True)))
        evaluated = min(rank_round.evaluated, MOST_EVALUATED) if images == sizes[0] else 0
        return _round(recipe, knobs, rank_round, precision, images, evaluated=evaluated)

    for (recompute, _), measured in zip(tasks, side_by_side(run, tasks, processes), strict=True):
        measurements[recompute].append(measured)
    return measurements


def _possible(recipe: Recipe, recompute: Recompute) -> bool:
    """A DDPM's UNet has no feed-forward layers to recompute; where the recipe asks for them, building it says so."""
    model = recipe.model
    if isinstance(model, EmbeddedConfig):
        model = embedded_source(model)
    asked = recipe.memory.activation_checkpointing != "auto"
    return asked or "feed_forwards" not in recompute or not isinstance(model, DdpmConfig)


def _round(
    recipe: Recipe, knobs: Knobs, rank_round: RankRound, precision: str, images: int, *, evaluated: int = 0
) -> Measured:
    """With everything on the GPU."""
    pieces = resident(knobs, rank_round.workload(knobs), images=images)
    return measure(recipe, pieces, precision=precision, images=images, evaluated=evaluated)


def planned_precision(precision: Precision) -> str:
    """auto is fp16, as on every CUDA device."""
    return "fp16" if precision == "auto" else precision


def _as_plan(
    recipe: Recipe, setting: Setting, *, fits: bool, budget: int, smallest: int, tflops: float, gpu: Gpu | None,
    ranks: int, precision: str, notes: list[str], changed: list[Change],
) -> Plan:  # fmt: skip
    estimate = setting.estimate
    phase = estimate.peak_phase
    items: dict[str, int] = total(estimate.phases[phase])
    items |= {"workspace": WORKSPACE_BYTES, "fragmentation": int(estimate.peak * FRAGMENTATION)}
    seconds = setting.seconds(tflops)
    return Plan(
        fits=fits,
        budget_bytes=budget,
        peak_bytes=setting.peak_bytes,
        peak_phase=phase,
        peak_module=estimate.modules.get(phase, ""),
        items=items,
        phases={name: estimate.live(name) for name in estimate.phases},
        knobs=setting.knobs.model_dump(),
        flops=estimate.flops,
        flops_ideal=estimate.flops_ideal,
        smallest_budget_bytes=smallest,
        host_bytes=estimate.host_bytes,
        moved_seconds=setting.moved_seconds,
        round_seconds=seconds,
        hours=seconds * recipe.run.rounds / 3600,
        gpu=gpu.name if gpu else None,
        ranks=ranks,
        precision=precision,
        changes=tuple(changed),
        notes=tuple(notes),
    )


def _cards_that_would(smallest: int, ranks: int) -> str:
    fitting = [card for card in CARDS.values() if card.budget_bytes(ranks) >= smallest]
    if not fitting:
        return "no card that is known here holds it"
    names = [card.name for card in sorted(fitting, key=lambda card: card.total_gib)[:3]]
    return f"the smallest cards that would hold it: {', '.join(names)}"
