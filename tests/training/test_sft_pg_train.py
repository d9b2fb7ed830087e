"""SFT-PG from the command line: a run that is stopped and made longer ends as one that never stopped, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers.processes import memdiff
from tests.training.test_train import fingerprint

RECIPE: dict[str, Any] = {
    "model": {"kind": "embedded"},
    "sampler": {"steps": 4, "sub_schedule": "quadratic", "final_std": 0.001},
    "method": {
        "kind": "sft_pg", "real": {"kind": "digits"}, "critic_steps": 2, "generator_updates": 2, "minibatch": 8,
        "warmup_rounds": 1, "max_kl": 1e-4, "critic": {"widths": [8, 16, 16]}, "value": {"width": 16},
    },
    "optimizer": {"learning_rate": 1e-4, "clip_norm": 0.1},
    "evaluate": {"every": 2, "images": 4, "rewards": [{"kind": "digits", "classifier": "judge"}]},
    "run": {"rounds": 4, "images_per_round": 4, "save_every": 1},
}  # fmt: skip


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Two ranks, four rounds: warm-up, then rounds whose second update is beyond the bound, so that the rate is halved
    three times. Ended after the second and made longer, it has the same weights, rows, critic and value function.
    """
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    for name, rounds in (("straight", [4]), ("resumed", [2, 4])):
        for last in rounds:
            done = memdiff("train", file, "--gpus", 2, "--out", tmp_path / name, "--set", f"run.rounds={last}")
            assert done.returncode == 0, done.stderr + done.stdout
    (weights, rows), (again, rows_again) = fingerprint(tmp_path / "straight"), fingerprint(tmp_path / "resumed")
    assert weights == again
    trained, trained_again = (
        {
            row["round"]: {key: value for key, value in row.items() if not key.startswith("evaluate/")}
            for row in some_rows
            if "ipm" in row
        }
        for some_rows in (rows, rows_again)
    )
    assert trained == trained_again
    assert [trained[number]["rate"] for number in (1, 2, 3, 4)] == [1, 0.5, 0.25, 0.125]
    assert trained[1]["grad_norm"] is None and trained[2]["lr"] == pytest.approx(1e-4)
    assert trained[3]["lr"] == pytest.approx(5e-5) and trained[3]["skipped_minibatches"] == 1
    states = [
        torch.load(tmp_path / name / "checkpoints/round_000004/learners.pt", weights_only=True)
        for name in ("straight", "resumed")
    ]
    for learner in ("critic", "value"):
        for key, value in states[0][learner]["network"].items():
            assert torch.equal(value, states[1][learner]["network"][key])
