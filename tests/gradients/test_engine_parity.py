"""DeepSpeed's gradient is plain autograd's, over a chain of 50 steps, whatever the world size, precision and offload.

The gradient is read where DeepSpeed hands it to its optimizer, after the reduction over ranks: so the 8-bit optimizers
are held to the same truth.
"""

import itertools
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers import half_precision
from tests.helpers.ranks import once, run_ranks

MODES = {
    f"{precision}{'-offload' if offload else ''}{'-8bit' if bits == 8 else ''}": {
        "precision": precision, "offload": offload, "bits": bits,
    }
    for precision, offload, bits in itertools.product(("fp32", "fp16"), (False, True), (32, 8))
}  # fmt: skip
# At three and four ranks, which take four processes on what may be two cores, the plainest and the fullest.
FEW = ("fp32", "fp16", "fp16-offload-8bit")
CASES = [
    pytest.param(size, mode, id=f"{size}-{mode}", marks=[pytest.mark.slow] if size > 2 and mode not in FEW else [])
    for size, mode in itertools.product((1, 2, 3, 4), MODES)
]
MAGNITUDES = [1e-3, 3e-2, 1.0, 30.0, 1e3]


@once
def run_modes(world_size: int, modes: tuple[str, ...]) -> list[dict[str, dict]]:
    """Of each rank, results by mode."""
    arguments = {"device": "cpu", "modes": [MODES[mode] for mode in modes], "steps": 50, "magnitudes": MAGNITUDES}
    rank_results = run_ranks("engine_parity", world_size, arguments, Path(mkdtemp()))
    return [dict(zip(modes, rank, strict=True)) for rank in rank_results]


def results(world_size: int, mode: str) -> list[dict]:
    """One a rank, of a process group that runs many modes one after the other."""
    if world_size <= 2:
        modes = tuple(MODES)
    else:
        modes = FEW if mode in FEW else tuple(other for other in MODES if other not in FEW)
    return [rank[mode] for rank in run_modes(world_size, modes)]


@pytest.mark.parametrize(("world_size", "mode"), CASES)
def test_gradient_equals_plain_autograd(world_size: int, mode: str) -> None:
    """At equal batch shapes <= 1e-6 relative in fp32; one graph: <= 1e-5; one pass: 1e-4. In fp16 twice what its
    rounding costs plain autograd: two graphs that each round (`half_precision`)."""
    half = MODES[mode]["precision"] == "fp16"
    for result in results(world_size, mode):
        assert result["error"] <= (half_precision.most(result["rounding"]) if half else 1e-6)
        assert result["error_one_graph"] <= (half_precision.most(result["rounding"]) if half else 1e-5)
        assert result["error_one_pass"] <= (half_precision.most(result["rounding_one_pass"]) if half else 1e-4)


@pytest.mark.parametrize(("world_size", "mode"), CASES)
def test_no_update_is_skipped(world_size: int, mode: str) -> None:
    """Largest gradient elements from 1e-3 to 1e3 in turn: every update is applied, the first one too."""
    for result in results(world_size, mode):
        assert result["skipped"] == 0
        assert result["updates"] == len(MAGNITUDES)


@pytest.mark.parametrize("mode", MODES)
def test_working_copies_follow_the_masters(mode: str) -> None:
    """After updates the network's own parameters are the fp32 masters, rounded to its precision (values below 4)."""
    for result in results(2, mode):
        assert result["working_copy_error"] <= (4 * 2**-11 if MODES[mode]["precision"] == "fp16" else 0)


def test_working_copies_on_a_gpu_are_compared_on_the_host() -> None:
    """Fake tensors of a CUDA device, which refuse to meet those of the host as a GPU's do."""
    from tests.workers.engine_parity import working_copy_error

    with FakeTensorMode():
        weights = {"w": torch.zeros(3)}
        copies = {"w": torch.zeros(3, dtype=torch.float16, device="cuda")}
        with pytest.raises(RuntimeError, match=r"same device|different devices"):
            torch.sub(weights["w"], copies["w"])
        assert working_copy_error(weights, copies).device == torch.device("cpu")


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_world_size_changes_nothing_but_rounding(world_size: int) -> None:
    """Against one rank: the same noise bit for bit, advantages <= 1e-6, gradients <= 1e-5 relative (fp32)."""
    (one,), several = results(1, "fp32"), results(world_size, "fp32")
    assert [value for rank in several for value in rank["noise"]] == one["noise"]
    advantages = torch.tensor([value for rank in several for value in rank["advantages"]])
    assert (advantages - torch.tensor(one["advantages"])).abs().max() <= 1e-6
    by_step = torch.tensor([values for rank in several for values in rank["step_advantages"]])
    assert (by_step - torch.tensor(one["step_advantages"])).abs().max() <= 1e-4  # V from other batch shapes
    truth = torch.tensor(one["gradient"], dtype=torch.float64)
    for rank in several:
        assert (torch.tensor(rank["gradient"], dtype=torch.float64) - truth).norm() <= 1e-5 * truth.norm()
