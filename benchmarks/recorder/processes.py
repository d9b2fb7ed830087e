"""Starts the workers: on one thread each, and on AVX2 wherever the processor has more, so that bits agree. No torch."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recorder.case import Case, Training
from memdiff.training.launcher import free_port

ROOT = Path(__file__).resolve().parents[2]
FIXED = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2,STRICT",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
MOST_SECONDS = 3 * 3600  # of a worker, on a machine that others use


def environment(rank: int = 0, ranks: int = 1, port: int = 0) -> dict[str, str]:
    """Environment variables of one rank's process, those in FIXED among them."""
    variables = {**os.environ, **FIXED, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port())}
    variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    variables.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
    return variables


def run_cases(
    cases: Sequence[Case], kept: Path, *, make_kept: bool = False, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Values by case; of a worker that ended badly its log, as the values of all its cases."""
    alone = [case for case in cases if case.ranks == 1]
    runs = [case.name for case in alone if isinstance(case, Training)]
    others = [case.name for case in alone if not isinstance(case, Training)]  # compositions share measurements
    together = [case.name for case in cases if case.ranks > 1]
    with tempfile.TemporaryDirectory(prefix="recorder_") as scratch:
        if make_kept:
            say("making the runs and the models that are kept")
            _finish(_start(Path(scratch) / "keeping", [], kept, 1, make_kept=True))
        results: dict[str, dict[str, Any]] = {}
        for jobs, ranks in ([runs[::2], runs[1::2], others], 1), ([together], 2):
            jobs = [names for names in jobs if names]
            if jobs:
                say(f"{sum(map(len, jobs))} cases, ranks: {ranks}, jobs side by side: {len(jobs)}")
                results |= _side_by_side(jobs, ranks, Path(scratch), kept)
    return results


def _side_by_side(jobs: Sequence[Sequence[str]], ranks: int, scratch: Path, kept: Path) -> dict[str, dict[str, Any]]:
    started: list[Started] = []
    results: dict[str, dict[str, Any]] = {}
    try:
        for part, names in enumerate(jobs):
            started.append(_start(scratch / f"{ranks}_{part}", names, kept, ranks))
        for names, each in zip(jobs, started, strict=True):
            try:
                results |= _finish(each)
            except RuntimeError as error:
                results |= {name: {"seconds": 0.0, "values": {"failed": str(error)}} for name in names}
    finally:
        for process, _ in (one for each in started for one in each):
            process.kill()  # SIGTERM would only ask a training to stop after its round
            process.wait()
    return results


Started = list[tuple[subprocess.Popen[bytes], Path]]


def _start(scratch: Path, names: Sequence[str], kept: Path, ranks: int, *, make_kept: bool = False) -> Started:
    scratch.mkdir()
    job = {"cases": list(names), "scratch": str(scratch), "kept": str(kept.resolve()), "make_kept": make_kept}
    (scratch / "job.json").write_text(json.dumps(job))
    port, started = free_port(), []
    for rank in range(ranks):
        words = [sys.executable, "-m", "benchmarks.recorder.worker", str(scratch / "job.json"),
                 str(scratch / f"result_{rank}.json")]  # fmt: skip
        with (scratch / f"log_{rank}").open("wb") as log:
            process = subprocess.Popen(words, env=environment(rank, ranks, port), cwd=ROOT, stdout=log, stderr=log)
        started.append((process, scratch / f"result_{rank}.json"))
    return started


def _finish(started: Started) -> dict[str, dict[str, Any]]:
    """One rank's values as they are, several ranks' as rank_0, rank_1. A rank that fails ends the others.

    Raises RuntimeError with its log.
    """
    deadline = time.monotonic() + MOST_SECONDS
    while any(process.poll() is None for process, _ in started) and time.monotonic() < deadline:
        if any(process.poll() for process, _ in started):
            break
        time.sleep(0.2)
    codes = [process.poll() for process, _ in started]
    for process, _ in started:
        process.kill()
        process.wait()
    for (_, result), code in sorted(zip(started, codes, strict=True), key=lambda each: each[1] is None):
        if code != 0:
            log = result.with_name(result.name.replace("result", "log").removesuffix(".json")).read_text()
            raise RuntimeError(f"a worker ended with {code}:\n{log[-4000:]}")
    results = [json.loads(result.read_text()) if result.is_file() else {} for _, result in started]
    if len(results) == 1:
        return results[0]
    return {
        name: {
            "seconds": first["seconds"],
            "values": {f"rank_{rank}": result[name]["values"] for rank, result in enumerate(results)},
        }
        for name, first in results[0].items()
    }
