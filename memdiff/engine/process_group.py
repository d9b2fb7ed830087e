"""torch.distributed through DeepSpeed: NCCL on GPUs, gloo on CPUs, one process or many."""

import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import deepspeed
import torch

from memdiff.engine.meeting import meet, port_told
from memdiff.engine.operators import load_shared_memory_operator
from memdiff.processes import landmarks
from memdiff.processes.heartbeat import MEETING
from memdiff.processes.host import free_port
from memdiff.runtime.ranks import Ranks


def start_process_group(ranks: Ranks) -> None:
    """torch.distributed through DeepSpeed: NCCL on GPUs, gloo on CPUs. Without a launcher: a group of one."""
    if torch.distributed.is_initialized():
        return
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    prefer_own_tools()
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for key, value in (alone | {"MASTER_PORT": str(free_port())}).items():
        os.environ.setdefault(key, value)  # where they are missing DeepSpeed tries MPI
    load_shared_memory_operator()
    # Each rank would print that its operator was built, at every start.
    with landmarks.at(MEETING), port_told(), redirect_stdout(StringIO()):
        meet(ranks)
        deepspeed.init_distributed("nccl" if ranks.device.type == "cuda" else "gloo", verbose=False)
    if ranks.device.type == "cpu":
        _unname_shared_memory(ranks)


def _unname_shared_memory(ranks: Ranks) -> None:
    """Takes the name away from this rank's buffer in shared memory, once every rank has it mapped.

    DeepSpeed's CPU operator never does: 66 MiB a rank would stay in memory after each run, until the next boot.
    """
    ranks.barrier()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    buffer = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{ranks.rank}"
    Path("/dev/shm", buffer).unlink(missing_ok=True)


def prefer_own_tools() -> None:
    """Puts this Python's own folder first in PATH, where its ninja lies.

    Two versions of ninja write different build logs: whichever comes second builds DeepSpeed's operators anew, minutes
    each time.
    """
    own, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != own:
        os.environ["PATH"] = os.pathsep.join((own, path))
