"""Reward gradients over ranks and through DeepSpeed: one graph's, whatever the world size, precision and offload."""

import itertools
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from tests.helpers import half_precision
from tests.helpers.ranks import once, run_ranks

MODES = [
    {"kind": kind, "precision": precision, "offload": offload}
    for kind, (precision, offload) in itertools.product(
        ("draft", "alignprop"), (("fp32", False), ("fp16", False), ("fp16", True))
    )
]
NAMES = [f"{m['kind']}-{m['precision']}{'-offload' if m['offload'] else ''}" for m in MODES]


@once
def results(world_size: int) -> list[list[dict]]:
    """One list of modes a rank."""
    return run_ranks("sweep_parity", world_size, {"modes": MODES}, Path(mkdtemp()))


@pytest.mark.parametrize("mode", range(len(MODES)), ids=NAMES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_gradient_is_that_of_one_graph(world_size: int, mode: int) -> None:
    """<= 1e-5 relative in fp32, in fp16 twice what its rounding costs the one graph."""
    half = MODES[mode]["precision"] == "fp16"
    for result in (rank[mode] for rank in results(world_size)):
        assert result["error"] <= (half_precision.most(result["rounding"]) if half else 1e-5)


@pytest.mark.parametrize("kind", ["draft", "alignprop"])
def test_two_ranks_do_what_one_does(kind: str) -> None:
    """Gradients, rewards, norms and depths in fp32: <= 1e-5 relative; the same on both ranks."""
    mode = NAMES.index(f"{kind}-fp32")
    one, two = results(1)[0][mode], [rank[mode] for rank in results(2)]
    for key in ("gradient", "rewards"):
        truth = torch.tensor(one[key], dtype=torch.float64)
        for rank in two:
            assert (torch.tensor(rank[key], dtype=torch.float64) - truth).norm() <= 1e-5 * truth.norm()
    for rank in two:
        assert rank["costate_norm"] == pytest.approx(one["costate_norm"], rel=1e-4)
        assert rank["last_steps_mean"] == one["last_steps_mean"]
