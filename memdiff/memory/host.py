"""A rank's host memory: what its process takes, what is there while it loads and while it trains. No torch.

Weights are read from safetensors files that are mapped: such pages are shared by ranks and dropped by the kernel when
it needs room, so that they are not counted, but for text encoders, which a pickled file would leave in memory. What is
counted can't be dropped: it has to be there for every rank at once.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memdiff.memory.zero2 import States
from memdiff.runtime.units import GIB

PROCESS_BYTES = int(0.7 * GIB)
"""Python and the libraries of one rank, measured: benchmarks/studies/host_memory.py, the first phases."""
CUDA_BYTES = int(1.7 * GIB)
"""CUDA's own: 1,122 MiB at the first tensor and 594 at the first convolution (pytorch issue 12873). That was with every
kernel loaded at once; since CUDA 11.7 they are loaded as they are used, and it is less. Not measured here."""
LAUNCHER_BYTES = int(0.5 * GIB)
"""`memdiff train` and DeepSpeed's two launchers, which wait while the ranks work: 0.15 GiB each beside shared pages."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of one rank beside its process, and of all ranks with theirs."""

    load_bytes: int  # the most while networks and the engine are made
    run_bytes: int  # while rounds go on
    total_bytes: int


def host_memory(run_bytes: int, *, waiting_bytes: int, states: States, ranks: int, on_gpu: bool = True) -> HostMemory:
    """`run_bytes` and `waiting_bytes` (the part of it that is there from the start) are the composition's.

    DeepSpeed copies what it trains to the host, flattens the copies there, and sends the flat one to the GPU.
    """
    load = waiting_bytes + 2 * states.working_copy
    rank = PROCESS_BYTES + (CUDA_BYTES if on_gpu else 0) + max(load, run_bytes)
    return HostMemory(load, run_bytes, ranks * rank + LAUNCHER_BYTES)


def machine_bytes() -> int | None:
    """The memory of this machine, or of the container that this process is in; None where the system doesn't say."""
    sizes = []
    with suppress(ValueError, OSError, AttributeError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" where there is no limit
            sizes.append(int(Path(file).read_text()))
    return min((size for size in sizes if size > 0), default=None)
