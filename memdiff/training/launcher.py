"""Starts the DeepSpeed launcher for a run and tells a person how it ended. No deepspeed is imported here."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.processes.bound import bound_command, bound_environment
from memdiff.processes.identity import kill, of_session, words_of
from memdiff.runtime.cuda_allocator import use_expandable_segments
from memdiff.training.run_folder import RunFolder

LOG = "launcher.log"
VISIBLE = "CUDA_VISIBLE_DEVICES"
VISIBLE_TO_RANKS = "MEMDIFF_VISIBLE_DEVICES"  # what VISIBLE said before the deepspeed launcher
SECONDS_FOR_RANKS = 3.0  # after the launcher has ended: their watchers need less


def under_launcher() -> bool:
    """Whether this process is a rank that a launcher started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def choose_world_size(gpus: int | None) -> int:
    """`--gpus`, or every GPU there is; on a machine without one, CPU ranks (default 1)."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is None:
        return max(1, count)
    if gpus < 1 or (count and gpus > count):
        allowed = f"1..{count}" if count else "at least 1 (CPU ranks)"
        named = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        raise ConfigError(f"--gpus must be {allowed}{named}, got {gpus}")
    return gpus


def rank_environment(world_size: int) -> dict[str, str]:
    """For the ranks: compiled operators inside a checkout's own cache, the CPU's threads divided over CPU ranks."""
    import torch

    environment = dict(os.environ)
    use_expandable_segments(environment)
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(root / ".cache" / "torch_extensions"))
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")  # or each of DeepSpeed's processes warns that it found no other
    cores = len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // world_size)))
    # deterministic cuBLAS, so that a resumed run gives the same bits
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A venv that was not activated still has ninja and the compiler wrappers beside its python.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment


def launcher_environment(world_size: int) -> dict[str, str]:
    """For the deepspeed launcher, which gives its ranks CUDA_VISIBLE_DEVICES 0..N-1 where it was told N.

    Its --include would take numbers alone and sort them. So the ranks get the devices that are visible here, in their
    order and whatever they are called, under another name: see `restore_visible_devices`.
    """
    environment = rank_environment(world_size)
    environment.pop(VISIBLE_TO_RANKS, None)
    if VISIBLE in environment:
        environment[VISIBLE_TO_RANKS] = environment.pop(VISIBLE)
    return environment


def restore_visible_devices() -> None:
    """In a rank, before CUDA is looked at: the devices that were visible to who started the launcher."""
    if VISIBLE_TO_RANKS in os.environ:
        os.environ[VISIBLE] = os.environ[VISIBLE_TO_RANKS]


def launch(arguments: Sequence[str], folder: RunFolder, world_size: int) -> int:
    """`deepspeed --num_gpus N --module memdiff <arguments>`; stderr goes to launcher.log. Returns the exit code.

    The launcher's own exit code is not trusted: it is 0 after its child was killed. A run is done when status.json says
    so. SIGTERM and SIGINT are passed on once to the whole group, and the ranks save. Nothing that was started here
    outlives this function, nor this process.
    """
    command = bound_command(
        "deepspeed.launcher.runner", "--log_level", "error", "--num_gpus", str(world_size),
        "--master_port", str(free_port()), "--module", "memdiff", *arguments,
    )  # fmt: skip
    environment = launcher_environment(world_size) | bound_environment()
    log = folder.path / LOG
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stderr=stderr, start_new_session=True)
        previous = {
            number: signal.signal(number, lambda received, _: _signal_ranks(process.pid, received))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            code = process.wait()
            _end_session(process.pid)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    state = folder.status()
    if state.get("state") in ("complete", "stopped") and state.get("exit_code") is not None:
        return int(state["exit_code"])
    return _tell_failure(folder, log, code)


def _signal_ranks(session: int, number: int) -> None:
    """Only to the ranks: DeepSpeed's launcher kills the others as soon as one is gone, before they have saved."""
    for pid in of_session(session):
        words = words_of(pid)
        if "memdiff" in words and any(word.startswith("--local_rank=") for word in words):
            kill([pid], number)


def _end_session(session: int) -> None:
    """Kills what is left of a launch whose first process has ended, once ranks have had time to say why."""
    deadline = time.monotonic() + SECONDS_FOR_RANKS
    while left := of_session(session):
        if time.monotonic() > deadline:
            kill(left)
        time.sleep(0.05)


def _tell_failure(folder: RunFolder, log: Path, code: int) -> int:
    """The first error line of the ranks on stderr, and its exit code."""
    lines = log.read_text(errors="replace").splitlines()
    said = next((line for line in lines if line.startswith("memdiff: error[")), None)
    if said is not None:
        sys.stderr.write(said + "\n")
        exit_code = int(said.removeprefix("memdiff: error[").partition("]")[0])
    else:
        exit_code = 6
        sys.stderr.write(f"memdiff: error[6]: a rank ended without a word (launcher exit code {code}); see {log}\n")
        said = f"a rank ended without a word (launcher exit code {code})"
    folder.write_status("failed", round_number=int(folder.status().get("round", 0)), exit_code=exit_code, message=said)
    return exit_code


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
