"""The buffer in shared memory that a CPU rank talks to the others through: its name, and its removal. No torch.

DeepSpeed's CPU operator makes it and never removes it: 66 MiB a rank would stay in memory after each run, until the
next boot.
"""

import os
from collections.abc import Mapping
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
NAMED_BY = ("MASTER_ADDR", "MASTER_PORT", "RANK")  # in the environment of a rank


def buffer_of(environment: Mapping[str, str]) -> Path | None:
    """Where a rank with this environment has it, if it has one; None where that is no rank's environment."""
    words = [environment.get(name) for name in NAMED_BY]
    if None in words:
        return None
    return SHARED_MEMORY / "_".join(["deepspeed_allreduce_buffer", str(os.getuid()), *map(str, words)])


def remove_buffer() -> None:
    """Takes the name away from this rank's, or its watcher's rank's; who has it mapped keeps it."""
    buffer = buffer_of(os.environ)
    if buffer is not None:
        buffer.unlink(missing_ok=True)
