"""Starts the DeepSpeed launcher for a run and tells a person how it ended. No deepspeed is imported here."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from memdiff.errors import EXIT_STOPPED, LAST_LINE, LOST, CheckpointError, ConfigError, PeerError, last_line
from memdiff.processes.ancestors import FAREWELL
from memdiff.processes.bound import bound_command, bound_environment
from memdiff.processes.cores import cores_here
from memdiff.processes.host import free_port
from memdiff.processes.launched import Launched
from memdiff.processes.stops import Stops, asked
from memdiff.runtime.cuda_allocator import use_expandable_segments
from memdiff.runtime.from_here import from_here
from memdiff.runtime.operator_folder import operator_folder
from memdiff.training.hosts import OnHosts, Seen, connect, environment_of_ranks
from memdiff.training.run_folder import RunFolder

LOG = "launcher.log"
VISIBLE = "CUDA_VISIBLE_DEVICES"
VISIBLE_TO_RANKS = "MEMDIFF_VISIBLE_DEVICES"  # what VISIBLE said before the deepspeed launcher
# The launcher's, where a rank said that it was stopped, or was ended by a signal that asks for it.
STOPPED_CODES = {EXIT_STOPPED, *(code % 256 for code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP))}
STOPPED_CODES |= {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}


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


def ranks_without_gpus(gpus: int | None) -> str | None:
    """What a person who asked for `gpus` is told where no GPU is seen; None where there is nothing to tell."""
    if gpus is None or gpus < 2 or ranks_use_gpus():
        return None
    return f"no GPU is seen here, so that --gpus {gpus} is {gpus} processes on the CPU; memdiff doctor says more"


def ranks_use_gpus() -> bool:
    """Whether ranks that are started here have GPUs, for which a run makes a plan."""
    import torch

    return torch.cuda.is_available()


def name_accelerator(environment: MutableMapping[str, str] = os.environ) -> None:
    """Tells DeepSpeed that there are CPUs alone, or each of its processes warns that it found no other."""
    import torch

    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")


def rank_environment(world_size: int) -> dict[str, str]:
    """For the ranks: compiled operators inside a checkout's own cache, the CPU's threads divided over CPU ranks."""

    environment = dict(os.environ)
    use_expandable_segments(environment)
    folder = operator_folder()
    if folder is not None:
        environment["TORCH_EXTENSIONS_DIR"] = folder
    name_accelerator(environment)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores_here() // world_size)))
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


def launch(arguments: Sequence[str], folder: RunFolder, world_size: int, stops: Stops) -> int:
    """`deepspeed --num_gpus N --module memdiff <arguments>`; stderr goes to launcher.log. Returns the exit code.

    The launcher's own exit code is not trusted: it is 0 after its child was killed. A run is done when status.json says
    so. A request to stop, to this process or to one of the launcher's, is passed on to the ranks, which save; a second
    one ends all at once. Nothing that was started here outlives this function, nor this process.
    """
    command = bound_command(
        "deepspeed.launcher.runner", "--log_level", "critical", "--num_gpus", str(world_size),
        "--master_port", str(free_port()), "--module", "memdiff", *arguments, requests_wait=True,
    )  # fmt: skip
    environment = launcher_environment(world_size) | bound_environment()
    log = folder.path / LOG
    with opened(log) as stderr:
        process = subprocess.Popen(command, env=environment, stderr=stderr, start_new_session=True)
        launched = Launched(process, stops)
        with stops.second_calls(launched.end_at_once):
            code = launched.wait()
    return outcome(folder, log, launched, code)


def launch_on_hosts(arguments: Sequence[str], folder: RunFolder, seen: Sequence[Seen], stops: Stops) -> int:
    """The same over several hosts, each reached by ssh (see `hosts`)."""
    environment = environment_of_ranks(rank_environment(1), seen)
    log = folder.path / LOG
    with opened(log) as stderr:
        launched = OnHosts(connect(seen, arguments, environment, stderr), log, stops)
        with stops.second_calls(launched.end_at_once):
            code = launched.wait()
    return outcome(folder, log, launched, code)


def outcome(folder: RunFolder, log: Path, launched: Launched | OnHosts, code: int) -> int:
    """How a launch ended: one line on stderr unless the run is complete, status.json, and the exit code."""
    status = folder.status()
    consequences = (LOST, FAREWELL) if launched.cleared else (LOST,)
    exit_code, message = said_in(log, without=consequences, first_gone=launched.first_gone)
    if status.get("state") == "complete" and status.get("exit_code") is not None:
        return int(status["exit_code"])
    if status.get("state") == "stopped" and status.get("exit_code") == EXIT_STOPPED:
        sys.stderr.write(from_here(last_line(EXIT_STOPPED, f"{status.get('message')}\n")))
        return EXIT_STOPPED
    # A rank that was asked and could do no more ends with the loss of another, which then is no news.
    stopped = launched.stops.requested or code in STOPPED_CODES or exit_code == EXIT_STOPPED
    if stopped and exit_code in (None, PeerError.exit_code, EXIT_STOPPED):
        exit_code = EXIT_STOPPED
        message = f"stopped on request: {folder.what_is_saved()}"
        if launched.stops.requested and launched.is_urgent:
            message = f"stopped at once, on a second request: {folder.what_is_saved()}"
    elif exit_code is None:
        exit_code = PeerError.exit_code
        message = f"{how_it_ended(launched, code, log)}; {folder.what_is_saved()}"
    sys.stderr.write(from_here(last_line(exit_code, f"{message}\n")))
    state = "stopped" if exit_code == EXIT_STOPPED else "failed"
    folder.write_status(state, round_number=round_of(status), exit_code=exit_code, message=message)
    return exit_code


def said_in(log: Path, *, without: Sequence[str], first_gone: str | None) -> tuple[int | None, str]:
    """The exit code and the words of the first line in the ranks' log that says why; (None, "") where none does.

    `without`: words of lines that say what something else led to. `first_gone`: the rank that ended first, as
    `rank N (pid P)`; that another was asked to stop is what that led to.
    """
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None, ""
    for line in lines:
        match = LAST_LINE.match(line)
        rank = re.match(asked(r"(\d+)"), match[2]) if match else None
        if rank and first_gone is not None and not first_gone.startswith(f"rank {rank[1]} "):
            continue
        if match and not any(words in line for words in without):
            return int(match[1]), match[2]
    return None, ""


def how_it_ended(launched: Launched | OnHosts, code: int, log: Path) -> str:
    """A launch of which no process left a word of ours."""
    if launched.how is not None:
        return launched.how
    who = launched.first_gone or "the deepspeed launcher"
    signal_number = -code if code < 0 else 256 - code
    if launched.cleared and last_error(log, of=launched.first_gone):
        signal_number = 0  # the launcher's is memdiff's own, which killed it; the rank left a traceback
    if 0 < signal_number < 65 and (code < 0 or launched.first_gone) and signal_number in set(signal.Signals):
        return f"{who} was killed by {signal.Signals(signal_number).name}"
    return f"{who} ended without a word (launcher exit code {code}{last_error(log)}); see {log}"


def last_error(log: Path, *, of: str | None = None) -> str:
    """The last line of the log that a traceback may have ended with: `, TypeError: ...`; empty where there is none.

    `of`: a rank, `rank N (pid P)`; lines that torch says are another's, as after the loss of this one, are left out.
    """
    with suppress(OSError):
        for line in reversed(log.read_text(errors="replace").splitlines()):
            whose, _, rest = line.partition("]: ")
            is_marked = re.fullmatch(r"\[rank\d+", whose) is not None
            if is_marked and of is not None and not of.startswith(f"rank {whose.removeprefix('[rank')} "):
                continue
            words = rest if is_marked else line
            if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", words):
                return f", {words[:200]}"
    return ""


def round_of(status: Mapping[str, Any]) -> int:
    """The round of a status, which may be damaged."""
    number = status.get("round")
    return number if isinstance(number, int) else 0


def opened(log: Path) -> BinaryIO:
    """The ranks' log. CheckpointError where it can't be written."""
    try:
        log.unlink(missing_ok=True)  # a link or a pipe of that name is not written into
        return log.open("xb")
    except OSError as error:
        raise CheckpointError(f"{log} can't be written: {error.strerror}") from None
