"""DeepSpeed's operators: compiled at the first start that needs them, by one process at a time, and said before.

DeepSpeed loads an operator where it first needs it, and finds one that was loaded before. So each is loaded here first,
under a lock that ends with its holder; torch's own lock file does not (see build_lock).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator
from torch.utils import cpp_extension

from memdiff.engine.build_lock import clear_lock
from memdiff.processes.file_lock import FileLock
from memdiff.processes.identity import parent_of, pid_of
from memdiff.runtime.announce import on_stdout, said_if_slow


def load_shared_memory_operator() -> None:
    """What CPU ranks of one machine talk through. Nothing where the accelerator is another, or can't have it."""
    builder = _builder("ShareMemCommBuilder")
    compatible: dict[str, bool] = deepspeed.ops.__compatible_ops__  # pyright: ignore[reportAttributeAccessIssue]
    if builder is not None and compatible.get(builder.NAME, False):
        load_operator(builder)


def load_cpu_adam() -> None:
    """AdamW of states that lie on the host."""
    load_operator(_builder("CPUAdamBuilder"))


def load_operator(builder: Any) -> None:
    """Loads a DeepSpeed operator, compiled first where it is not yet; other processes wait meanwhile."""
    name: str = builder.NAME
    folder = Path(cpp_extension._get_build_directory(name, verbose=False))
    with _one_at_a_time(folder):
        clear_lock(folder, on_stdout)
        words = f"compiling DeepSpeed's {name}, which takes about a minute, once"
        if (folder / f"{name}.so").is_file():
            with said_if_slow(words):  # its sources, the compiler's options or ninja may be others than they were
                builder.load()
        else:
            on_stdout(words)
            builder.load()


def _builder(name: str) -> Any:
    accelerator: Any = get_accelerator()
    return accelerator.create_op_builder(name)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Alone among memdiff's processes. In a folder that can't be written nothing is built, and nobody waits."""
    with FileLock(folder.with_name(f"{folder.name}.lock")) as lock:
        with suppress(OSError), said_if_slow(lambda: _whose(lock, folder.name)):
            lock.acquire(wait=True)
        yield


def _whose(lock: FileLock, operator: str) -> str | None:
    """Who is waited for, in words; None for a rank of this run, which has said itself what it does."""
    holder = lock.holder()
    if holder.process and parent_of(pid_of(holder.process)) == os.getppid():
        return None
    return f"waiting for {holder}, which builds DeepSpeed's {operator}"
