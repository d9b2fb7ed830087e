"""All access of the recorder to the inside of memdiff. A change of that inside edits this file and no other.

    run(words)                       a command of `memdiff` in this process; its exit code must be 0
    watched(seen)                    inside, trainings tell `seen`, on each rank:
        seen.start                   what is trained before the first update, fp32
        seen.x_0                     what was decoded, each once, in order
        seen.gradients               the sums handed to the engine, one list an update
        seen.advantages              of this rank's images, a round; by step where a baseline tells steps apart
        seen.eligibilities           of one pass, a round: sums and log-probs of each batch
    in_half()                        inside, DeepSpeed's fp16 path runs on a CPU
    composed_and_whole(recipe, ...)  bytes by phase as the planner composes them, and simulated whole

`knobs` of compositions are the planner's: some of its choices no recipe can say.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from memdiff.cli import main
from memdiff.engine.ds_config import make_ds_config
from memdiff.memory.knobs import Knobs, MemoryConfig, resolved
from memdiff.memory.zero2 import States, training_states
from memdiff.planner.compose import estimate_round
from memdiff.planner.dry_run import measure
from memdiff.planner.measured import Measured
from memdiff.planner.piece_costs import PieceCosts
from memdiff.planner.rank_round import rank_round_of, sizes_to_measure
from memdiff.planner.rounds import resident
from memdiff.recipe.reading import check_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.training import one_rank
from memdiff.training.build import Parts

RESIDENT = resolved(MemoryConfig())


def run(words: Sequence[str]) -> None:
    """What it prints is kept for the error's text. Raises RuntimeError where it fails."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            main(words)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"memdiff {' '.join(words)} ended with {end.code}: {said.getvalue()[-2000:]}") from None


@dataclass
class Seen:
    """What one training told of itself."""

    start: list[torch.Tensor] = field(default_factory=list)
    x_0: list[torch.Tensor] = field(default_factory=list)
    gradients: list[list[torch.Tensor]] = field(default_factory=list)
    advantages: list[torch.Tensor] = field(default_factory=list)
    eligibilities: list[list[torch.Tensor]] = field(default_factory=list)


@contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """The parts of every training that is built inside are listened to. Rehearsals are not."""
    build, rehearse = one_rank.build_parts, one_rank.rehearse
    rehearsing: list[bool] = []

    def build_and_listen(*words: Any, **options: Any) -> Parts:
        parts = build(*words, **options)
        seen.start = list(parts.engine.weights().values())
        _listen(parts, seen, rehearsing)
        return parts

    def rehearse_unheard(parts: Parts) -> None:
        rehearsing.append(True)
        rehearse(parts)
        rehearsing.clear()

    with (
        mock.patch.object(one_rank, "build_parts", build_and_listen),
        mock.patch.object(one_rank, "rehearse", rehearse_unheard),
    ):
        yield


def _listen(parts: Parts, seen: Seen, rehearsing: list[bool]) -> None:
    known: set[bytes] = set()

    def decoded(x_0_BCHW: torch.Tensor) -> None:
        x = x_0_BCHW.detach().clone()
        content = x.flatten().view(torch.uint8).numpy().tobytes()
        if not rehearsing and content not in known:  # a decoder that is made again sees the same
            known.add(content)
            seen.x_0.append(x)

    def differentiated(_: Any, experience: Any) -> None:
        advantages = getattr(experience, "advantages_n", None)
        if advantages is None or getattr(experience, "old_log_probs", None) is not None:
            return  # a method without advantages; a later update of the same round
        by_step = experience.step_advantages_Kn
        seen.advantages.append((advantages if by_step is None else by_step).clone())
        if experience.eligibilities:
            own = [[*each.sums.sums, each.log_probs_KB] for each in experience.eligibilities]
            seen.eligibilities.append([tensor.clone() for tensors in own for tensor in tensors])

    def applied(rate: float = 1.0) -> None:
        del rate  # of the learning rate: what is added up does not know it
        seen.gradients.append([total.clone() for total in parts.engine.gradients.sums])

    for owner, name, listener in (
        (parts.policy, "decode", decoded),
        (parts.method, "differentiate", differentiated),
        (parts.engine, "apply", applied),
    ):
        setattr(owner, name, _telling(getattr(owner, name), listener))


def _telling(function: Callable[..., Any], listener: Callable[..., None]) -> Callable[..., Any]:
    def call(*words: Any) -> Any:
        listener(*words)
        return function(*words)

    return call


@contextmanager
def in_half() -> Iterator[None]:
    """DeepSpeed refuses fp16 on CPUs; torch's CPU kernels do it."""
    with (
        mock.patch.object(CPU_Accelerator, "is_fp16_supported", lambda self: True),
        mock.patch.object(CPU_Accelerator, "supported_dtypes", lambda self: [torch.float, torch.bfloat16, torch.half]),
    ):
        yield


def composed_and_whole(raw: Mapping[str, Any], knobs: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """`composed`: bytes by phase and category, FLOPs, bytes moved and on the host, from short rounds.

    `whole`: peaks by phase and category of the same round simulated at full length; no optimizer takes part in it.
    """
    recipe = check_recipe(raw, source="case")
    chosen = Knobs(**{**RESIDENT.model_dump(), **knobs})
    rank_round = rank_round_of(recipe, ranks=1, precision=precision)
    sizes = sorted({*sizes_to_measure(recipe, rank_round), chosen.micro_batch})
    short: Any = _short_round  # frozen sections have a hash, which pyright does not see
    work = rank_round.workload(chosen)
    rounds = [
        short(
            recipe, resident(chosen, work, images=images).model_copy(update={"decode_batch": images}),
            precision, images, rank_round.evaluated if images == sizes[0] else 0,
        )
        for images in sizes
    ]  # fmt: skip
    costs = PieceCosts.of(rounds)
    estimate = estimate_round(
        rank_round, chosen, costs, _states(recipe, costs, precision, offload=chosen.offload_optimizer)
    )
    whole = measure(
        recipe, chosen, precision=precision, images=rank_round.images, steps=recipe.sampler.steps, paths=False,
        cut_method=False, evaluated=rank_round.evaluated,
    )  # fmt: skip
    return {
        "composed": {
            "phases": {phase: _present(parts) for phase, parts in estimate.phases.items()},
            "peak_phase": estimate.peak_phase,
            "flops": estimate.flops,
            "flops_ideal": estimate.flops_ideal,
            "moved_bytes": estimate.moved_bytes,
            "host_bytes": estimate.host_bytes,
        },
        "whole": {
            "phases": {phase: _present(peak.categories) for phase, peak in whole.peaks.items()},
            "flops": dict(whole.flops),
        },
    }


@cache  # compositions of one recipe share them
def _short_round(recipe: Any, knobs: Knobs, precision: str, images: int, evaluated: int) -> Measured:
    return measure(recipe, knobs, precision=precision, images=images, paths=False, evaluated=evaluated)


def _states(recipe: Recipe, costs: PieceCosts, precision: str, *, offload: bool) -> States:
    """Of the recipe's own optimizer on one rank, as a plan counts them."""
    sizes, optimizer = costs.sizes, recipe.optimizer
    zero = make_ds_config(optimizer, precision=precision, offload=False, trainable_elements=sizes.elements)
    return training_states(
        sizes.elements, ranks=1, half=precision != "fp32", bits=optimizer.bits, ema=optimizer.ema is not None,
        offload=offload, bucket_elements=zero["zero_optimization"]["reduce_bucket_size"],
        largest_elements=sizes.largest_elements,
    )  # fmt: skip


def _present(parts: Mapping[Any, int]) -> dict[str, int]:
    return {str(category): size for category, size in parts.items() if size}
