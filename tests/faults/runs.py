"""A `memdiff train` that a trial strikes: started, watched, and all of its processes accounted for."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from memdiff.processes.ancestors import LAUNCH, RUNNER
from memdiff.processes.identity import PROC, all_pids, identity, kill, rank_of, words_of
from memdiff.reporting.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_START, SECONDS_TO_END, SECONDS_IN_ALL = 900.0, 300.0, 1800.0  # end what hangs; the machine may be busy
_one_at_a_time = threading.Lock()
UNEQUAL = ("seconds_", "peak_bytes")  # what may differ between two runs of one recipe
RECIPE: dict[str, Any] = {
    "model": {"kind": "embedded"},
    "sampler": {"steps": 3},
    "method": {"kind": "reinforce"},
    "reward": [{"kind": "digits", "mode": "probability"}],
    "evaluate": {"every": 0},
    "run": {"rounds": 5, "images_per_round": 4, "save_every": 1},
}


# What a method's recipe has in the place of RECIPE's sections.
OF_METHOD: dict[str, dict[str, Any]] = {
    "sft_pg": {
        "sampler": {"steps": 4, "sub_schedule": "quadratic", "final_std": 0.001},
        "method": {
            "real": {"kind": "digits"}, "critic_steps": 2, "generator_updates": 2, "minibatch": 8, "warmup_rounds": 1,
            "critic": {"widths": [8, 16, 16]}, "value": {"width": 16},
        },
        "reward": None,
    },
}  # fmt: skip


class Run:
    """A command, its folder, and all processes that follow from it: they have a mark in their environment."""

    def __init__(self, command: list[object], log: Path, **environment: str) -> None:
        self.mark, self.log = f"MEMDIFF_TEST={uuid.uuid4().hex}", log
        name, _, value = self.mark.partition("=")
        known = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), name: value}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                cwd=ROOT, env=os.environ | known | environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def alive(self) -> list[int]:
        """Those that live still."""
        return [pid for pid in all_pids() if self._marked(pid) and identity(pid) is not None]

    def with_word(self, word: str) -> list[int]:
        """Those of them with this word in their command line."""
        return [pid for pid in sorted(self.alive()) if word in words_of(pid)]

    def rank(self, number: int) -> int | None:
        """The process of a rank; None while there is none."""
        return next((pid for pid in sorted(self.alive()) if rank_of(pid) == str(number)), None)

    def said(self) -> str:
        """All that it wrote so far."""
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], object], seconds: float = SECONDS_TO_START) -> None:
        """Waits for it. AssertionError where it does not come, or the command ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = self.process.poll() is not None
            assert not ended or condition(), f"ended with {self.process.returncode}: {self.said()[-2000:]}"
            assert time.monotonic() < deadline, f"nothing for {seconds:.0f} s: {self.said()[-2000:]}"
            time.sleep(0.03)

    def end(self, seconds: float = SECONDS_TO_END) -> int:
        """Waits for the command's end, then for that of all that followed from it. Returns the exit code."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"lives after {seconds:.0f} s: {self.said()[-2000:]}") from None
        return code

    def orphans(self, seconds: float = 5.0) -> list[list[str]]:
        """Command lines of what lives so long after the command has ended."""
        deadline = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [words_of(pid) for pid in left]

    def clear(self) -> None:
        """Kills what is left of it."""
        kill(self.alive())
        self.process.wait()

    def _marked(self, pid: int) -> bool:
        try:
            return self.mark.encode() in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


def write_recipe(file: Path, **changes: dict[str, Any] | list[Any] | None) -> Path:
    """RECIPE with changed sections."""
    content = dict(RECIPE)
    for section, values in changes.items():
        content[section] = content.get(section, {}) | values if isinstance(values, dict) else values
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


def train(recipe: Path, out: Path, *words: object, gpus: int = 2, **environment: str) -> Run:
    """`memdiff train recipe --gpus N --out out words`, begun."""
    log = out.with_name(f"{out.name}.log")
    return Run(["memdiff", "train", recipe, "--gpus", gpus, "--out", out, *words], log, **environment)


def rows(out: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what may differ between two runs of one recipe."""
    file = out / "metrics.jsonl"
    read = read_rows(file) if file.is_file() else []
    return [{key: value for key, value in row.items() if not key.startswith(UNEQUAL)} for row in read]


def last_round(out: Path) -> int:
    """The last with a row; -1 where there is none."""
    return max((row["round"] for row in rows(out)), default=-1)


def status(out: Path) -> dict[str, Any]:
    """What status.json says, empty without one."""
    return json.loads((out / "status.json").read_text())


def fingerprint(out: Path) -> dict[str, str]:
    """sha256 of the saved models' weights, of each tensor in the last checkpoint, and of the metrics rows."""
    import torch

    prints = {
        model.name: hashlib.sha256((model / "unet/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
        for model in (out / "model", out / "model_best")
        if model.exists() or model.name == "model"
    }
    prints["rows"] = hashlib.sha256(json.dumps(rows(out), sort_keys=True).encode()).hexdigest()
    last = max((out / "checkpoints").glob("round_??????"))
    for file in sorted(last.rglob("*.pt")):
        content = torch.load(file, weights_only=False)  # what this test's own run wrote
        digest = hashlib.sha256()
        for path, tensor in tensors_of(content):
            digest.update(path.encode() + tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        prints[str(file.relative_to(last))] = digest.hexdigest()
    return prints


def tensors_of(content: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every tensor in nested dicts and lists, by its path."""
    import torch

    if isinstance(content, torch.Tensor):
        return [(path, content)] if content.dim() else [(path, content.reshape(1))]
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [entry for key, value in items for entry in tensors_of(value, f"{path}/{key}")]


def trained(out: Path, number: int) -> Callable[[], bool]:
    """Whether a round is done."""
    return lambda: last_round(out) >= number


def signalled(run: Run, whom: str, number: int) -> Callable[[], None]:
    """A signal to one process of a run, or to all of them at once."""

    def send() -> None:
        match whom:
            case "memdiff":
                pids = [run.process.pid]
            case "runner":
                pids = run.with_word(RUNNER)[-1:]
            case "launch.py":
                pids = run.with_word(LAUNCH)[-1:]
            case "group":
                pids = run.alive()
            case _:
                pids = [pid for pid in [run.rank(int(whom.removeprefix("rank ")))] if pid is not None]
        assert pids, f"there is no {whom}"
        kill(pids, number)

    return send


def complete_with_one_warning(run: Run, line: str, reason: str) -> None:
    """The run goes on to its end: one line with `line` in it, which says why, and no traceback."""
    assert run.end(1800) == 0, run.said()[-1500:]
    warned = [each for each in run.said().splitlines() if line in each]
    assert len(warned) == 1 and reason in warned[0], run.said()[-1500:]
    assert "Traceback" not in run.said(), run.said()[-1500:]


def to_the_end(run: Run, out: Path, recipe: Path) -> Callable[[], float]:
    """It ends by itself, and is what a run of the recipe is that nothing happens to, bit for bit."""

    def wait() -> float:
        assert run.end(SECONDS_IN_ALL) == 0, run.said()[-1500:]
        wanted = uninterrupted(out.parent.parent, recipe)
        assert fingerprint(out) == wanted, "weights, optimizer state or rows differ from the run that was left alone"
        return 0.0

    return wait


def uninterrupted(folder: Path, recipe: Path) -> dict[str, str]:
    """The fingerprint of the run of its method that nothing happens to, made once in a folder."""
    out = folder / f"whole_{yaml.safe_load(recipe.read_text())['method']['kind']}"
    with _one_at_a_time:
        if not out.exists():
            folder.mkdir(exist_ok=True)
            run = train(recipe, out)
            code = run.end(SECONDS_IN_ALL)
            assert code == 0, run.said()[-2000:]
            run.clear()
        return fingerprint(out)
