"""DeepSpeed's gradient is plain autograd's, over a chain of 50 steps, whatever the world size, precision and offload.

The gradient is read where DeepSpeed hands it to its optimizer, after the reduction over ranks: so the 8-bit optimizers
are held to the same truth.
"""

import itertools
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from tests import half_precision
from tests.ranks import once, run_ranks

MODES = [
    {"precision": precision, "offload": offload, "bits": bits}
    for precision, offload, bits in itertools.product(("fp32", "fp16"), (False, True), (32, 8))
]
MAGNITUDES = [1e-3, 3e-2, 1.0, 30.0, 1e3]
NAMES = [f"{m['precision']}{'-offload' if m['offload'] else ''}{'-8bit' if m['bits'] == 8 else ''}" for m in MODES]


@once
def results(world_size: int) -> list[list[dict]]:
    """One list of modes a rank."""
    arguments = {"device": "cpu", "modes": MODES, "steps": 50, "magnitudes": MAGNITUDES}
    return run_ranks("engine_parity", world_size, arguments, Path(mkdtemp()))


@pytest.mark.parametrize("mode", range(len(MODES)), ids=NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_gradient_equals_plain_autograd(world_size: int, mode: int) -> None:
    """At equal batch shapes <= 1e-6 relative in fp32; one graph: <= 1e-5; one pass: 1e-4. In fp16 what its rounding
    costs plain autograd, once at equal batch shapes, where only the scale differs, else twice."""
    half = MODES[mode]["precision"] == "fp16"
    for result in (rank[mode] for rank in results(world_size)):
        assert result["error"] <= (half_precision.most(result["rounding"]) / 2 if half else 1e-6)
        assert result["error_one_graph"] <= (half_precision.most(result["rounding"]) if half else 1e-5)
        assert result["error_one_pass"] <= (half_precision.most(result["rounding_one_pass"]) if half else 1e-4)


@pytest.mark.parametrize("mode", range(len(MODES)), ids=NAMES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_no_update_is_skipped(world_size: int, mode: int) -> None:
    """Largest gradient elements from 1e-3 to 1e3 in turn: every update is applied, the first one too."""
    for rank in results(world_size):
        assert rank[mode]["skipped"] == 0
        assert rank[mode]["updates"] == len(MAGNITUDES)


@pytest.mark.parametrize("mode", range(len(MODES)), ids=NAMES)
def test_working_copies_follow_the_masters(mode: int) -> None:
    """After updates the network's own parameters are the fp32 masters, rounded to its precision (values below 4)."""
    for rank in results(2):
        assert rank[mode]["working_copy_error"] <= (4 * 2**-11 if MODES[mode]["precision"] == "fp16" else 0)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_world_size_changes_nothing_but_rounding(world_size: int) -> None:
    """Against one rank: the same noise bit for bit, advantages <= 1e-6, gradients <= 1e-5 relative (fp32)."""
    one, several = results(1)[0][0], [rank[0] for rank in results(world_size)]
    assert [value for rank in several for value in rank["noise"]] == one["noise"]
    advantages = torch.tensor([value for rank in several for value in rank["advantages"]])
    assert (advantages - torch.tensor(one["advantages"])).abs().max() <= 1e-6
    by_step = torch.tensor([values for rank in several for values in rank["step_advantages"]])
    assert (by_step - torch.tensor(one["step_advantages"])).abs().max() <= 1e-4  # V from other batch shapes
    truth = torch.tensor(one["gradient"], dtype=torch.float64)
    for rank in several:
        assert (torch.tensor(rank["gradient"], dtype=torch.float64) - truth).norm() <= 1e-5 * truth.norm()
