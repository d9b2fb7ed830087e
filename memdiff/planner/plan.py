"""The plan of a recipe on a card: measured pieces, the fastest setting that fits, what would help where none does."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import yaml

from memdiff.engine.ds_config import make_ds_config
from memdiff.memory.gpus import CARDS, MARGIN_BYTES, Gpu
from memdiff.memory.host import host_memory
from memdiff.memory.knobs import Knobs
from memdiff.memory.throughput import peak_share
from memdiff.memory.zero2 import States, training_states
from memdiff.models.config import needs_guidance, takes_prompts
from memdiff.planner.advice import MISFIT_NOTE, Change, changes, costs_of_moving, sentences, three_best
from memdiff.planner.compose import total
from memdiff.planner.piece_costs import PieceCosts
from memdiff.planner.rank_round import planned_precision, rank_round_of
from memdiff.planner.rounds import Measuring, ShortRound, measure_recomputes, measure_rounds
from memdiff.planner.search import Recompute, Setting, all_ways, fastest_of, recompute_of, smallest_of
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.units import GIB

VERSION = 4  # of plan.json: host memory at load and in all
HOST_NOTE = "host memory:"
REFERENCE_TFLOPS = 65.0  # a T4, where only a budget is given


@dataclass(frozen=True)
class Plan:
    """What a run will need on each GPU. Bytes, but where a name says otherwise."""

    fits: bool
    budget_bytes: int  # for live bytes and allowance
    margin_bytes: int  # kept free beside it on a named card
    peak_bytes: int  # live bytes and allowance
    live_bytes: int
    allowance_bytes: int  # that the allocator reserves beyond them
    peak_phase: str
    peak_module: str
    items: Mapping[str, int]  # of the peak
    phases: Mapping[str, int]  # live bytes of each
    knobs: Mapping[str, Any]
    flops: float  # of a round on one GPU
    flops_ideal: float  # nothing recomputed; of REINFORCE a rollout and its replays: one pass is below it
    smallest_budget_bytes: int  # at which some setting fits
    host_bytes: int  # of a rank while it trains, beside its process
    host_load_bytes: int  # of a rank while it loads, beside its process
    host_total_bytes: int  # of all ranks with their processes and CUDA's own
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
        head = f"# {said}: {self.of_budget()} on each of {self.ranks} GPUs"
        return f"{head}\n{yaml.safe_dump({'memory': dict(self.knobs)}, sort_keys=False)}"

    def of_budget(self) -> str:
        """Live bytes, allowance, budget and margin, apart."""
        live, allowance, budget = (size / GIB for size in (self.live_bytes, self.allowance_bytes, self.budget_bytes))
        kept = f", {self.margin_bytes / GIB:.2f} more kept free" if self.margin_bytes else ""
        return f"{live:.2f} live + {allowance:.2f} allowance = {self.peak_bytes / GIB:.2f} of {budget:.2f} GiB{kept}"

    def held_to(self, host_limit_bytes: int | None) -> "Plan":
        """The same, with a note first where the ranks need more host memory than that."""
        if host_limit_bytes is None or self.host_total_bytes <= host_limit_bytes:
            return self
        who = "1 rank needs" if self.ranks == 1 else f"{self.ranks} ranks need"
        text = (
            f"{HOST_NOTE} {who} {self.host_total_bytes / GIB:.1f} GiB in all and the machine has "
            f"{host_limit_bytes / GIB:.1f}; fewer ranks, or less that waits on the host"
        )
        return dataclasses.replace(self, notes=(text, *self.notes))

    def warnings(self) -> list[str]:
        """Of the notes those that say that the card or the machine has too little."""
        return [note for note in self.notes if note.startswith((MISFIT_NOTE, HOST_NOTE))]

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
    measuring: Measuring | None = None,
    host_limit_bytes: int | None = None,
) -> Plan:
    """On `ranks` GPUs whose allocator may hold `budget_bytes` each. Raises ConfigError for what can't be planned.

    Where the ranks need more than `host_limit_bytes` of host memory, a note says so.
    """
    measuring = measuring or Measuring()
    precision = precision or planned_precision(recipe.model.precision)
    rank_round = rank_round_of(recipe, ranks=ranks, precision=precision)
    rounds = measure_recomputes(recipe, rank_round, precision, measuring=measuring)
    while True:
        costs = {recompute: PieceCosts.of(measured) for recompute, measured in rounds.items()}
        plan = choose(recipe, costs, budget_bytes=budget_bytes, ranks=ranks, gpu=gpu, precision=precision)
        knobs = plan.chosen()
        if costs[recompute_of(knobs)].are_measured_at(knobs.micro_batch):
            return plan.held_to(host_limit_bytes)
        # What was chosen lay between measured sizes: it is measured itself, and the choice made again.
        missing = [ShortRound(recompute_of(knobs), knobs.micro_batch)]
        measured = rounds[recompute_of(knobs)]
        measured += measure_rounds(recipe, rank_round, precision, missing, measuring)
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
    sizes = next(iter(costs.values())).sizes
    rank_round = rank_round_of(recipe, ranks=ranks, precision=precision).on(sizes)

    # The size that the engine will be given: DeepSpeed allocates it in full, however little is in it.
    bucket = make_ds_config(recipe.optimizer, precision=precision, offload=False, trainable_elements=sizes.elements)[
        "zero_optimization"
    ]["reduce_bucket_size"]

    @cache
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

    peak = gpu.peak_tflops if gpu else REFERENCE_TFLOPS
    tflops = peak * peak_share(_family(recipe), 1)
    every = list(all_ways(rank_round, recipe.memory, costs, states_of))
    smallest_setting = smallest_of(every)
    smallest = smallest_setting.peak_bytes
    fastest = fastest_of(every, recipe.memory, budget=budget_bytes, tflops=tflops)
    fits, setting = fastest is not None, fastest or smallest_setting
    notes = sentences(recipe, setting, sizes, states_of, ranks=ranks, fits=fits, budget=budget_bytes, smallest=smallest)
    changed = changes(setting, rank_round, costs, states_of)
    notes += costs_of_moving(changed)
    if not fits:
        notes += [_cards_that_would(smallest, ranks)]
    return _as_plan(
        recipe, setting, fits=fits, budget=budget_bytes, smallest=smallest, peak_tflops=peak, gpu=gpu, ranks=ranks,
        precision=precision, notes=notes, changed=changed,
        states=states_of(setting.knobs.offload_optimizer),
    )  # fmt: skip


def _as_plan(
    recipe: Recipe, setting: Setting, *, fits: bool, budget: int, smallest: int, peak_tflops: float, gpu: Gpu | None,
    ranks: int, precision: str, notes: list[str], changed: list[Change], states: States,
) -> Plan:  # fmt: skip
    estimate = setting.estimate
    phase = estimate.peak_phase
    items: dict[str, int] = total(estimate.phases[phase])
    items |= {"allowance": setting.allowance_bytes}
    seconds = estimate.flops / (peak_tflops * 1e12 * peak_share(_family(recipe), _rows(recipe, setting)))
    seconds += setting.moved_seconds
    host = host_memory(estimate.host_bytes, waiting_bytes=estimate.host_waiting_bytes, states=states, ranks=ranks)
    return Plan(
        fits=fits,
        budget_bytes=budget,
        margin_bytes=MARGIN_BYTES if gpu else 0,
        peak_bytes=setting.peak_bytes,
        live_bytes=estimate.peak,
        allowance_bytes=setting.allowance_bytes,
        peak_phase=phase,
        peak_module=estimate.modules.get(phase, ""),
        items=items,
        phases={name: estimate.live(name) for name in estimate.phases},
        knobs=setting.knobs.model_dump(),
        flops=estimate.flops,
        flops_ideal=estimate.flops_ideal,
        smallest_budget_bytes=smallest,
        host_bytes=host.run_bytes,
        host_load_bytes=host.load_bytes,
        host_total_bytes=host.total_bytes,
        moved_seconds=setting.moved_seconds,
        round_seconds=seconds,
        hours=seconds * recipe.run.rounds / 3600,
        gpu=gpu.name if gpu else None,
        ranks=ranks,
        precision=precision,
        changes=tuple(changed),
        notes=tuple(notes),
    )


def _family(recipe: Recipe) -> str:
    """As the table of throughput has it: embedded models are small ones of their kinds."""
    if recipe.model.kind != "embedded":
        return recipe.model.kind
    return "stable_diffusion" if takes_prompts(recipe.model) else "ddpm"


def _rows(recipe: Recipe, setting: Setting) -> int:
    """Of the network, in a piece."""
    both = needs_guidance(recipe.sampler.guidance) and setting.knobs.guidance_passes == 1
    return setting.knobs.micro_batch * (2 if both else 1)


def _cards_that_would(smallest: int, ranks: int) -> str:
    fitting = [card for card in CARDS.values() if card.budget_bytes(ranks) >= smallest]
    if not fitting:
        return "no card that is known here holds it"
    names = [card.name for card in sorted(fitting, key=lambda card: card.total_gib)[:3]]
    return f"the smallest cards that would hold it: {', '.join(names)}"
