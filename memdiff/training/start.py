"""Starts a run whose recipe is right: in this process, or as ranks under DeepSpeed's launcher. No torch."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memdiff.processes.heartbeat import Heartbeat
from memdiff.processes.stops import BLOCKED, Stops
from memdiff.recipe.contents import contents_of
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.announce import on_stdout, said_if_slow
from memdiff.runtime.units import counted
from memdiff.training.deadline import note_start
from memdiff.training.hosts import Seen
from memdiff.training.launcher import launch, launch_on_hosts, rank_environment, ranks_use_gpus, round_of
from memdiff.training.run_folder import Resume, RunFolder

CHECKING = "checking the recipe, its files and this machine, for which torch is loaded"
LIBRARIES = "torch, DeepSpeed, diffusers and transformers"


def way_on(recipe: Recipe, folder: RunFolder) -> str | None:
    """What makes a complete run longer; None where rounds are left."""
    status = folder.status()
    ended_by_guard = recipe.guards.stop and status.get("ended_by_guard", False)
    if status.get("state") != "complete" or not (ended_by_guard or round_of(status) >= recipe.run.rounds):
        return None
    return "guards.stop=false" if ended_by_guard else "run.rounds=N"


def run_ranks(
    recipe: Recipe, folder: RunFolder, arguments: list[str], world_size: int, stops: Stops, seen: Sequence[Seen] = ()
) -> int:
    """The launcher's exit code, in a folder that is this process's own; after a complete run its report is there.

    `seen` are the hosts of the ranks; empty: they run here.
    """
    note_start()
    folder.write_status("running", round_number=round_of(folder.status()))
    if not seen and ranks_use_gpus():
        from memdiff.planner.warm_up import warm_round_cache

        warm_round_cache(recipe, world_size)
    on_stdout(f"starting {counted(world_size, 'rank')}: {LIBRARIES} are loaded first")
    stops.stay()
    code = launch_on_hosts(arguments, folder, seen, stops) if seen else launch(arguments, folder, world_size, stops)
    if code == 0:
        write_report_of(folder.path)
    return code


def run_here(recipe: Recipe, folder: RunFolder, resume: Resume, ds_config: Path | None, stops: Stops) -> int:
    """One rank, this process: a notebook's or a script's. Returns the exit code."""
    if folder.exists() and resume != "never":
        folder.check_same(recipe, contents_of(recipe, ds_config))
        if way_on(recipe, folder):
            return 0
    note_start()
    with said_if_slow(f"loading {LIBRARIES}"):
        from memdiff.models.quiet import quiet_libraries
        from memdiff.training.one_rank import train_rank

    quiet_libraries()
    for name, value in rank_environment(1).items():
        if name != "OMP_NUM_THREADS":  # torch has its threads already
            os.environ[name] = value
    code = train_rank(recipe, folder.path, stops, Heartbeat.make(), resume=resume, ds_config_file=ds_config)
    if code == 0:
        write_report_of(folder.path)
    return code


@contextmanager
def programs_stops() -> Iterator[Stops]:
    """Requests to stop while a program's run goes on; a second one interrupts it. Afterwards signals are its own again.

    In another thread than the main one Python takes no signals: then nothing is listened to.
    """
    stops = Stops(_interrupt)
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    before = {number: signal.getsignal(number) for number in BLOCKED}
    stops.listen()
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt() -> None:
    raise KeyboardInterrupt


def write_report_of(folder: Path) -> None:
    """report.html of a run folder, or a line where it can't be written: the run is complete without it."""
    try:
        with said_if_slow("writing the report"):
            from memdiff.reporting.html import write_report

            write_report(folder)
    except OSError as error:
        sys.stderr.write(f"memdiff: warning: the report could not be written: {error.strerror or error}\n")
