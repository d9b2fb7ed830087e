"""The real command line: one command trains, the same command resumes, mistakes are one line and cost nothing."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import DDIMPipeline

from memdiff.models.quiet import quiet_libraries
from memdiff.reporting.rows import read_rows
from memdiff.training.launcher import free_port
from tests.helpers import processes
from tests.helpers.processes import SECONDS_UNTIL_HUNG, ended, memdiff

quiet_libraries()
ROOT = Path(__file__).resolve().parents[2]
UNEQUAL = ("seconds_", "peak_bytes")  # what may differ between two runs of one recipe


def recipe(folder: Path, **sections: object) -> Path:
    """Four steps, four images a round, on the embedded model: seconds a round."""
    content = {
        "model": {"kind": "embedded"},
        "sampler": {"steps": 4},
        "method": {"kind": "reinforce"},
        "reward": [{"kind": "digits", "mode": "probability"}],
        "optimizer": {"learning_rate": 1e-4},
        "evaluate": {"every": 2, "images": 4},
        "run": {"rounds": 4, "images_per_round": 4, "save_every": 1},
    } | sections
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def fingerprint(run: Path) -> tuple[str, list[dict]]:
    """sha256 of the saved weights, and the metrics without what may differ."""
    weights = hashlib.sha256((run / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    rows = [
        {key: value for key, value in row.items() if not key.startswith(UNEQUAL)}
        for row in read_rows(run / "metrics.jsonl")
    ]
    return weights, rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """(recipe, run folder, outcome) of four rounds on two ranks."""
    folder = tmp_path_factory.mktemp("train")
    file = recipe(folder)
    done = memdiff("train", file, "--gpus", 2, "--out", folder / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    return file, folder / "run", done


def test_a_run_leaves_what_it_promises(finished: tuple) -> None:
    """Contract of the run folder: files, rows, status, a model that plain diffusers loads, a report."""
    _, run, done = finished
    assert done.stdout.strip().splitlines()[-1] == str(run)
    said = [line for line in done.stdout.splitlines() if not line.endswith("are loaded first")]  # where that is slow
    assert done.stderr == "" and "DeepSpeed" not in "".join(said)
    order = [" ".join(words[:4]) for line in said if (words := line.split()) and words[0] in ("round", "evaluation")]
    rounds = [word.split(" reward")[0] for word in order]
    assert rounds == [
        "evaluation at round 0", "round 1/4", "round 2/4", "evaluation at round 2", "round 3/4", "round 4/4",
        "evaluation at round 4",
    ]  # fmt: skip
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "status.json",
        "report.html",
        "samples/round_000004.png",
        "samples/evolution.gif",
    ):
        assert (run / name).stat().st_size > 0, name
    rows = read_rows(run / "metrics.jsonl")
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["images"] for row in rows] == [0, 4, 8, 12, 16]
    assert [row["round"] for row in rows if "evaluate/reward_mean" in row] == [0, 2, 4]
    for row in rows[1:]:
        for key in (
            "reward_mean",
            "reward/digits",
            "grad_norm",
            "lr",
            "seconds_rollout",
            "seconds_train",
            "log_prob_mean",
        ):
            assert isinstance(row[key], float), key
        assert row["skipped"] == 0 and row["clip_fraction"] == 0 and len(row["step_gradient_norm"]) == 4
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["round"]) == ("complete", 0, 4)
    assert status["environment"]["world_size"] == 2
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["round_000003", "round_000004"]
    pipeline: Any = DDIMPipeline.from_pretrained(run / "model")
    assert pipeline(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 1)


def test_a_complete_run_is_left_alone(finished: tuple) -> None:
    """The same command again says so in seconds; another recipe in the same folder is refused, naming the key."""
    file, run, _ = finished
    before = fingerprint(run)
    again = memdiff("train", file, "--gpus", 2, "--out", run)
    assert again.returncode == 0 and "complete" in again.stdout and again.stdout.strip().endswith(str(run))
    other = memdiff("train", file, "--gpus", 2, "--out", run, "--set", "optimizer.learning_rate=1")
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1 and "optimizer.learning_rate" in other.stderr
    assert fingerprint(run) == before


def test_stopped_and_resumed_is_the_same_run(finished: tuple, tmp_path: Path) -> None:
    """SIGTERM during the run: exit 75, saved; the same command goes on to weights and rows equal bit for bit."""
    file, run, _ = finished
    out = tmp_path / "run"
    command = [sys.executable, "-m", "memdiff", "train", str(file), "--gpus", "2", "--out", str(out)]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said)
    with ended(process):
        deadline = time.monotonic() + SECONDS_UNTIL_HUNG
        while not (out / "checkpoints" / "round_000001").is_dir():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SECONDS_UNTIL_HUNG) == 75, (tmp_path / "said").read_text()
    stopped = json.loads((out / "status.json").read_text())
    assert stopped["state"] == "stopped" and 1 <= stopped["round"] < 4
    done = memdiff("train", file, "--gpus", 2, "--out", out, "--resume", "must")
    assert done.returncode == 0, done.stderr
    assert fingerprint(out) == fingerprint(run)


@pytest.mark.slow
def test_the_deepspeed_launcher_does_the_same_job(finished: tuple, tmp_path: Path) -> None:
    """`deepspeed --num_gpus 2 --module memdiff train ...`: the same weights and rows, bit for bit."""
    file, run, _ = finished
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port()),
        "--module", "memdiff", "train", str(file), "--out", str(out),
    ]  # fmt: skip
    done = processes.run(command, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert fingerprint(out) == fingerprint(run)


def test_lora_8bit_average_and_offload_resume_bit_for_bit(tmp_path: Path) -> None:
    """One rank; LoRA, 8-bit AdamW, CPU offload, EMA, DDPO's two updates a round: two rounds and two more equal four."""
    file = recipe(
        tmp_path,
        adapter={"rank": 2},
        method={"kind": "reinforce", "inner_updates": 2, "advantage_clip": 5.0},
        optimizer={"learning_rate": 1e-3, "bits": 8, "ema": 0.9, "warmup_updates": 3},
        memory={"offload_optimizer": True, "accumulators": "host", "micro_batch": 5},
    )
    whole = memdiff("train", file, "--gpus", 1, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for rounds in (2, 4):
        part = memdiff("train", file, "--gpus", 1, "--out", tmp_path / "parts", "--set", f"run.rounds={rounds}")
        assert part.returncode == 0, part.stderr
    assert "resuming after round 2" in part.stdout
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "parts")
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert [row["update"] for row in rows] == [0, 2, 4, 6, 8]
    assert rows[1]["lr"] == pytest.approx(1e-3 * 2 / 3)
    assert (tmp_path / "whole/model/adapter/adapter_model.safetensors").is_file()


REWARDS = {
    "raises": ("def score(images, prompts):\n    raise RuntimeError('no\\nluck')\n", "raised RuntimeError: no luck"),
    "scalar": ("def score(images, prompts):\n    return images.mean()\n", "nothing is broadcast"),
    "nan": ("def score(images, prompts):\n    return [float('nan')] * len(images)\n", "not finite"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "raises" else [pytest.mark.slow]) for name in REWARDS]
)
def test_a_bad_reward_ends_every_rank_with_code_3(name: str, tmp_path: Path) -> None:
    """One line on stderr that names the reward; status.json says failed."""
    source, message = REWARDS[name]
    (tmp_path / "mine.py").write_text(source)
    file = recipe(tmp_path, reward=[{"kind": "python", "file": "mine.py"}])
    done = memdiff("train", file, "--gpus", 2, "--out", tmp_path / "run")
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stderr.startswith("memdiff: error[3]: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and "score" in done.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


def test_a_users_python_reward_trains(tmp_path: Path) -> None:
    """The file lies beside the recipe, and beside it modules that every rank imports, one when the file is read and one
    in the function; parts and weights show up in the metrics."""
    (tmp_path / "mine_ink.py").write_text(
        "def ink(images):\n    from mine_axes import AXES\n    return images.mean(dim=AXES)\n"
    )
    (tmp_path / "mine_axes.py").write_text("AXES = (1, 2, 3)\n")
    (tmp_path / "mine.py").write_text("import mine_ink\ndef score(images, prompts):\n    return mine_ink.ink(images)\n")
    parts = [{"kind": "python", "file": "mine.py", "name": "ink", "weight": -2.0}, {"kind": "digits"}]
    file = recipe(tmp_path, reward=parts, run={"rounds": 1, "images_per_round": 3, "save_every": 1})
    done = memdiff("train", file, "--gpus", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    row = read_rows(tmp_path / "run/metrics.jsonl")[1]
    assert row["reward_mean"] == pytest.approx(-2 * row["reward/ink"] + row["reward/digits"], abs=1e-6)


BAD_ARGUMENTS = {
    "more ranks than images": (["--gpus", "5"], "--gpus 4"),
    "no ranks": (["--gpus", "0"], "--gpus must be"),
    "unknown resume": (["--resume", "perhaps"], "--resume must be"),
    "must without a run": (["--resume", "must"], "holds no run"),
    "unknown label": (["--set", "reward=[{kind: digits, digits: [12]}]"], "equal to 9, got 12"),
    "ds-config": (["--ds-config", "DS"], "gradient_clipping is the trainer's own"),
    "unknown option": (["--gpu", "2"], "--gpu"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_cost_nothing(name: str, tmp_path: Path) -> None:
    """One line, exit code 2 (5 where a checkpoint was demanded), and no run folder."""
    arguments, message = BAD_ARGUMENTS[name]
    (tmp_path / "ds.json").write_text('{"gradient_clipping": 0.5}')
    arguments = [str(tmp_path / "ds.json") if word == "DS" else word for word in arguments]
    done = memdiff("train", recipe(tmp_path), "--out", tmp_path / "run", *arguments)
    assert done.returncode == (5 if name.startswith("must") else 2), done.stderr
    assert message in done.stderr and done.stderr.startswith("memdiff: error[") and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
