"""The demo in real fp16, the engine's parity with plain autograd, bits that repeat, NCCL where there are several GPUs.

Run with `make test-gpu`; launch/README.md says what the machine needs.
"""

import json
from pathlib import Path

import pytest
import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.methods.config import ReinforceConfig
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.reinforce import Reinforce
from memdiff.reporting.rows import read_rows
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces
from tests.helpers.processes import memdiff
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import tiny_policy
from tests.workers.engine_parity import Brightness, knobs, relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
ROOT = Path(__file__).resolve().parents[2]
MODES = [
    {"precision": precision, "offload": offload, "bits": bits}
    for precision in ("fp32", "fp16")
    for offload, bits in ((False, 32), (True, 32), (False, 8), (True, 8))
]


def parity(world_size: int, folder: Path) -> list[list[dict]]:
    arguments = {"device": "cuda", "modes": MODES, "steps": 50, "magnitudes": [1e-3, 1.0, 1e3]}
    return run_ranks("engine_parity", world_size, arguments, folder)


def check_parity(results: list[list[dict]]) -> None:
    for rank in results:
        for mode, result in zip(MODES, rank, strict=True):
            assert result["error"] <= (2e-3 if mode["precision"] == "fp16" else 1e-5), mode
            assert result["skipped"] == 0, mode
            # The masters, rounded to the precision of the working copies (values below 4).
            assert result["working_copy_error"] <= (4 * 2**-11 if mode["precision"] == "fp16" else 0), mode


def test_engine_parity_on_one_gpu(tmp_path: Path) -> None:
    """fp32 <= 1e-5 (kernels sum in other orders; no TF32), fp16 <= 2e-3 relative; no update skipped."""
    check_parity(parity(1, tmp_path))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: NCCL refuses two ranks on one")
def test_engine_parity_over_nccl(tmp_path: Path) -> None:
    check_parity(parity(2, tmp_path))


def test_demo_recipe_in_real_fp16(tmp_path: Path) -> None:
    """Three rounds of the demo: fp16 is chosen, nothing is skipped or redone, a peak is measured, the model samples."""
    run = tmp_path / "run"
    done = memdiff("train", "launch/recipes/digits_reinforce.yaml", "--gpus", 1, "--out", run, "--set", "run.rounds=3")
    assert done.returncode == 0, done.stderr
    rows = read_rows(run / "metrics.jsonl")[1:]
    assert len(rows) == 3
    for row in rows:
        assert row["skipped"] == 0 and row["pieces_redone"] == 0 and row["peak_bytes"] > 0
        assert row["loss_scale"] != 1.0  # fp16: set from the gradient
    assert json.loads((run / "status.json").read_text())["state"] == "complete"
    assert memdiff("sample", run, "--num-images", 8, "--out", tmp_path / "images").returncode == 0
    assert len(list((tmp_path / "images").glob("image_*.png"))) == 8


def one_round(*, on_host: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """x_0 and gradients of one round on the GPU in fp16."""
    device = torch.device("cuda", 0)
    policy = tiny_policy(steps=10, dtype=torch.float16, device=device, clip=True)
    gradients = Gradients(list(policy.trainable().values()), on_host=on_host)
    reward = WeightedReward([WeightedPart("brightness", Brightness())], device=device)
    place = "host" if on_host else "gpu"
    settings = knobs(16, trajectory=place, accumulators=place)
    method = Reinforce(ReinforceConfig(kind="reinforce"), reward, Pieces(gradients), Ranks(0, 1, device), settings)
    noise = Noise(seed=3, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape)
    experience = method.collect(policy, Round(Batch(range(6), [""] * 6, 6, noise), Clock(device)))
    method.differentiate(policy, experience)
    return experience.trajectory.final(range(6)), [total.cpu() for total in gradients.sums]


def test_trajectory_and_sums_in_pinned_host_memory_change_nothing() -> None:
    """Non-blocking copies out and back: the same images bit for bit, the same gradients."""
    (x_gpu, gradients_gpu), (x_host, gradients_host) = one_round(on_host=False), one_round(on_host=True)
    assert torch.equal(x_gpu, x_host)
    assert relative(gradients_host, gradients_gpu) < 1e-5


def test_the_same_round_twice_gives_the_same_bits() -> None:
    (x_a, gradients_a), (x_b, gradients_b) = one_round(on_host=False), one_round(on_host=False)
    assert torch.equal(x_a, x_b)
    assert all(torch.equal(a, b) for a, b in zip(gradients_a, gradients_b, strict=True))
