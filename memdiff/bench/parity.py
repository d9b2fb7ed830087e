"""One round by the real launcher on one rank and on several: the gradient, and seconds. No torch until it compares."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memdiff.bench.block import ParityRow
from memdiff.bench.cases import PARITY_CHANGES, PARITY_RECIPE
from memdiff.bench.children import run_module
from memdiff.runtime.numbered import numbered
from memdiff.training.launcher import name_accelerator
from memdiff.training.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

# Tensor cores' 19 bits differ between batch shapes by more than what is looked for.
EXACT: Mapping[str, str] = {"NVIDIA_TF32_OVERRIDE": "0"}


def parity_rows(
    sizes: Sequence[int], folder: Path, environment: Mapping[str, str], *, backend: str
) -> Iterator[ParityRow]:
    """A row as each world size is done; runs lie in `folder`. Raises MemdiffError for one that fails."""
    first: torch.Tensor | None = None
    for ranks in sizes:
        run = folder / f"ranks_{ranks}"
        run_module("memdiff", *words(ranks, run), environment={**environment, **EXACT}, log=folder / f"{run.name}.log")
        seconds, gradient = second_round(RunFolder(run).rows()), gradient_of(run)
        yield ParityRow(ranks, backend, seconds, None if first is None else distance(gradient, first))
        first = gradient if first is None else first


def words(ranks: int, run: Path) -> list[str]:
    """What `memdiff train` is called with."""
    changes = [word for key, value in PARITY_CHANGES.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["train", PARITY_RECIPE, "--gpus", str(ranks), "--out", str(run), *changes]


def second_round(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of its phases; the first round warms up."""
    row = rows[-1]
    return float(sum(row[f"seconds_{phase}"] for phase in ("rollout", "reward", "train")))


def gradient_of(run: Path) -> "torch.Tensor":
    """Of the first update, up to a factor that is the same in all runs: AdamW's first moment after it."""
    name_accelerator()
    from memdiff.engine.moments import first_moments

    return first_moments(numbered(run / "checkpoints", "round_")[1])


def distance(gradient: "torch.Tensor", reference: "torch.Tensor") -> float:
    """Of the whole vector, relative to the reference's length."""
    return float((gradient - reference).norm() / reference.norm())
