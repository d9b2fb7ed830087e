"""Runs a worker module as N ranks over gloo and collects what each rank reports."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memdiff.launcher import free_port

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(worker: str, world_size: int, arguments: dict[str, Any], folder: Path, timeout: int = 300) -> list[Any]:
    """`python -m tests.workers.<worker> ARGUMENTS RESULT` on each rank; every rank writes its result as JSON."""
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
    try:
        codes = [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, code in enumerate(codes):
        assert code == 0, f"rank {rank} ended with {code}:\n{(folder / f'{rank}.log').read_text()[-3000:]}"
    left = [path.name for path in Path("/dev/shm").glob(f"deepspeed_*_{port}_*")]
    assert not left, f"shared memory that outlives its ranks: {left}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]
