"""Rows of metrics.jsonl.

Shapes: N images over all ranks, P reward parts.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from memdiff.engine.update import Update
from memdiff.methods.experience import Clock, Metrics
from memdiff.methods.method import Outcome
from memdiff.runtime.ranks import Ranks
from memdiff.training.build import Parts
from memdiff.training.evaluate import part_means
from memdiff.training.run_state import RunState


def round_row(
    parts: Parts, run_state: RunState, outcome: Outcome, updates: Sequence[Update], diagnostics: Metrics, clock: Clock
) -> Metrics:
    """One row of metrics.jsonl, over all ranks. Of the round's `updates` the last one; `skipped` counts them all.

    A method may have none in a round; the reward of one that takes no parts is its own.
    """
    ranks, rewards_N, raw_PN = parts.ranks, outcome.rewards_N, outcome.raw_PN
    phases = ("rollout", "reward", "train")
    slowest = ranks.max(torch.tensor([clock.read().get(phase, 0.0) for phase in phases], device=ranks.device)).tolist()
    update = updates[-1] if updates else Update(math.nan, math.nan, False, math.nan)
    has_parts = bool(parts.reward.parts)
    row: Metrics = {
        "round": run_state.round,
        "update": parts.engine.updates,
        "images": run_state.images,
        "images_in_round": len(rewards_N),
        "reward_mean": parts.reward.value(raw_PN, parts.reward.statistics) if has_parts else float(rewards_N.mean()),
        "reward_std": float(rewards_N.std(correction=0)),
        **part_means(parts.reward, raw_PN),
        **{
            f"reward_std/{name}": float(s.std(correction=0)) for name, s in zip(parts.reward.names, raw_PN, strict=True)
        },
        "grad_norm": update.grad_norm,
        "loss_scale": update.loss_scale,
        "skipped": sum(update.skipped for update in updates),
        "lr": update.learning_rate,
        **{f"seconds_{phase}": seconds for phase, seconds in zip(phases, slowest, strict=True)},
        "peak_bytes": peak_bytes(ranks),
        "pieces_redone": int(ranks.sum(torch.tensor(parts.pieces.redone, device=ranks.device))),
        **outcome.metrics,
        **diagnostics,
    }
    return plain_row(row)


def plain_row(row: Metrics) -> Metrics:
    """The same with values that any JSON reader takes."""
    return {key: plain(value) for key, value in row.items()}


def plain(value: Any) -> Any:
    """JSON's own types; numbers that are not finite become null."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def reset_peak(ranks: Ranks) -> None:
    """Starts a new measurement of the allocator's peak."""
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)


def peak_bytes(ranks: Ranks) -> int | None:
    """The most that the allocator held on any GPU since the last reset; None on a CPU, where it is not known."""
    if ranks.device.type != "cuda":
        return None
    return int(ranks.max(torch.tensor(torch.cuda.max_memory_allocated(ranks.device), device=ranks.device)))
