"""Runs a worker module as N ranks over gloo and collects what each rank reports."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import pytest

from memdiff.training.launcher import free_port
from tests.helpers.processes import ROOT, SECONDS_UNTIL_HUNG, ended

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def once(run: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`run` once for each of its arguments, a failure too: else each test that shares it would wait for it again."""
    outcomes: dict[tuple, tuple[Result | None, BaseException | None]] = {}

    def result(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if arguments not in outcomes:
            try:
                outcomes[arguments] = run(*arguments, **named), None
            except (Exception, pytest.fail.Exception) as failure:  # what pytest's time limit raises is no Exception
                outcomes[arguments] = None, failure
        return_value, failure = outcomes[arguments]
        if failure is not None:
            raise failure
        return cast(Result, return_value)

    return result


def run_ranks(worker: str, world_size: int, arguments: dict[str, Any], folder: Path) -> list[Any]:
    """`python -m tests.workers.<worker> ARGUMENTS RESULT` on each rank; every rank writes its result as JSON.

    When this returns or raises, no rank is left: the first that fails ends the others, which would wait for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, processes = free_port(), []
    for rank in range(world_size):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [sys.executable, "-m", f"tests.workers.{worker}", json.dumps(arguments), str(folder / f"{rank}.json")]
        with (folder / f"{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
    with ended(*processes):
        codes = _codes(processes)
    for rank, code in enumerate(codes):
        assert code in (0, None), f"rank {rank} ended with {code}:\n{(folder / f'{rank}.log').read_text()[-3000:]}"
    assert None not in codes, f"ranks not done after {SECONDS_UNTIL_HUNG:.0f} s: {codes}; they were killed"
    left = [path.name for path in Path("/dev/shm").glob(f"deepspeed_*_{port}_*")]
    assert not left, f"shared memory that outlives its ranks: {left}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


def _codes(processes: Sequence[subprocess.Popen]) -> list[int | None]:
    """Exit codes once all have ended or one has failed; None where a rank is still alive then, or at the limit."""
    deadline = time.monotonic() + SECONDS_UNTIL_HUNG
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes):
            return codes
        time.sleep(0.05)
    return [process.poll() for process in processes]
