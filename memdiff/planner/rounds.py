"""The short rounds that a plan is made of: which there are, and measuring those that are not in the cache.

The ways of recomputing differ in the UNet alone: texts are encoded, and images decoded, scored and evaluated, in the
rounds of the first way; in the others' images are blank.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from memdiff.memory.knobs import TABLE, Knobs, resolved
from memdiff.methods.workload import Workload
from memdiff.models.config import takes_prompts
from memdiff.planner.libraries import load_libraries
from memdiff.planner.measured import Measured
from memdiff.planner.processes import side_by_side, uncollected
from memdiff.planner.rank_round import RankRound, sizes_to_measure
from memdiff.planner.round_cache import RoundCache
from memdiff.planner.search import MEASURED, Recompute, left_open
from memdiff.recipe.recipe import Recipe

MOST_EVALUATED = 64  # images of an evaluation that are scored on fake tensors; for more its bytes are multiplied
Progress = Callable[[int, int], None]  # rounds that are measured, of how many


@dataclass(frozen=True)
class ShortRound:
    """One short round: its setting and its images."""

    recompute: Recompute
    images: int
    evaluated: int = 0
    blank: bool = False


@dataclass(frozen=True)
class Measuring:
    """How rounds are measured: in how many processes, in which cache they are, and who hears how far it is.

    `alone`: the process that measures does nothing else (memdiff.planner.libraries).
    """

    processes: int = 1
    cache: RoundCache | None = None
    progress: Progress = lambda done, total: None
    alone: bool = False


def measure_recomputes(
    recipe: Recipe, rank_round: RankRound, precision: str, *, measuring: Measuring | None = None
) -> dict[Recompute, list[Measured]]:
    """The ways of recomputing that the recipe leaves open, each measured at one size or several."""
    rounds = short_rounds(recipe, rank_round)
    results = measure_rounds(recipe, rank_round, precision, rounds, measuring or Measuring())
    whole = {one.images: measured for one, measured in zip(rounds, results, strict=True) if not one.blank}
    ways: dict[Recompute, list[Measured]] = {one.recompute: [] for one in rounds}
    for one, measured in zip(rounds, results, strict=True):
        ways[one.recompute].append(measured.with_images_of(whole[one.images]) if one.blank else measured)
    return ways


def short_rounds(recipe: Recipe, rank_round: RankRound) -> list[ShortRound]:
    """By way, and of each way by size."""
    values = (left_open(recipe.memory, name) for name in MEASURED)
    ways = [recompute for recompute in product(*values) if _possible(recipe, recompute)]
    sizes = sizes_to_measure(recipe, rank_round)
    evaluated = min(rank_round.evaluated, MOST_EVALUATED)
    return [
        ShortRound(
            recompute,
            images,
            evaluated if recompute == ways[0] and images == sizes[0] else 0,
            blank=recompute != ways[0],
        )
        for recompute in ways
        for images in sizes
    ]


def measure_rounds(
    recipe: Recipe, rank_round: RankRound, precision: str, rounds: Sequence[ShortRound], measuring: Measuring
) -> list[Measured]:
    """Each, in order; with more than one process side by side, in forks: see memdiff.planner.processes."""
    cache = measuring.cache or RoundCache(recipe, None)
    keys = [_key(recipe, rank_round, precision, one) for one in rounds]
    results = [cache.read(key) for key in keys]
    missing = [number for number, measured in enumerate(results) if measured is None]
    finished = len(rounds) - len(missing)

    def done() -> None:
        nonlocal finished
        finished += 1
        measuring.progress(finished, len(rounds))

    measuring.progress(finished, len(rounds))
    if missing:
        with uncollected() if measuring.alone else nullcontext():
            scored = any(not rounds[number].blank for number in missing)
            load_libraries(recipe, scored=scored and measuring.processes > 1, alone=measuring.alone)
            tasks = [(recipe, rank_round, precision, rounds[number]) for number in missing]
            lanes = [rounds[number].images for number in missing]  # rounds of a size have operators in common
            measured_now = side_by_side(_measured, tasks, measuring.processes, lanes=lanes, done=done)
        for number, measured in zip(missing, measured_now, strict=True):
            cache.write(keys[number], measured)
            results[number] = measured
    return [measured for measured in results if measured is not None]


def _measured(recipe: Recipe, rank_round: RankRound, precision: str, one: ShortRound) -> Measured:
    """With everything on the GPU."""
    from memdiff.planner.dry_run import measure

    return measure(
        recipe, _knobs(recipe, rank_round, one), precision=precision, images=one.images, evaluated=one.evaluated,
        blank=one.blank,
    )  # fmt: skip


def _knobs(recipe: Recipe, rank_round: RankRound, one: ShortRound) -> Knobs:
    knobs = resolved(recipe.memory).model_copy(update=dict(zip(MEASURED, one.recompute, strict=True)))
    return resident(knobs, rank_round.workload(knobs), images=one.images)


def resident(knobs: Knobs, work: Workload, *, images: int) -> Knobs:
    """One piece of `images` images with everything on the GPU all the time, one step's graph kept where any can be."""
    plain = {name: knob.plain for name, knob in TABLE.items() if knob.choices and not knob.measured}
    pieces = {"micro_batch": images, "rollout_batch": images, "kept_steps": min(1, work.most_kept)}
    return knobs.model_copy(update=plain | pieces)


def _key(recipe: Recipe, rank_round: RankRound, precision: str, one: ShortRound) -> dict[str, Any]:
    return {**asdict(one), "precision": precision, "knobs": _knobs(recipe, rank_round, one).model_dump()}


def _possible(recipe: Recipe, recompute: Recompute) -> bool:
    """A DDPM's UNet has no feed-forward layers to recompute; where the recipe asks for them, building it says so."""
    asked = recipe.memory.activation_checkpointing != "auto"
    return asked or "feed_forwards" not in recompute or takes_prompts(recipe.model)
