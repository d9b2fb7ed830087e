"""Starts a run whose recipe is right: in this process, or as ranks under DeepSpeed's launcher. No torch."""

import os
from pathlib import Path

from memdiff.recipe.contents import contents_of
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.exit_codes import quiet_bitsandbytes
from memdiff.training.launcher import launch, rank_environment
from memdiff.training.run_folder import Resume, RunFolder


def way_on(recipe: Recipe, folder: RunFolder) -> str | None:
    """What makes a complete run longer; None where rounds are left."""
    status = folder.status()
    ended_by_guard = recipe.guards.stop and status.get("ended_by_guard", False)
    if status.get("state") != "complete" or not (ended_by_guard or status.get("round", 0) >= recipe.run.rounds):
        return None
    return "guards.stop=false" if ended_by_guard else "run.rounds=N"


def run_ranks(recipe: Recipe, folder: RunFolder, arguments: list[str], world_size: int) -> int:
    """The launcher's exit code, in a folder that is this process's own; after a complete run its report is there."""
    folder.write_status("running", round_number=folder.status().get("round", 0))
    code = launch(arguments, folder, world_size)
    if code == 0:
        write_report_of(folder.path)
    return code


def run_here(recipe: Recipe, folder: RunFolder, resume: Resume, ds_config: Path | None) -> int:
    """One rank, this process: a notebook's or a script's. Returns the exit code."""
    if folder.exists() and resume != "never":
        folder.check_same(recipe, contents_of(recipe, ds_config))
        if way_on(recipe, folder):
            return 0
    from memdiff.models.quiet import quiet_libraries
    from memdiff.training.loop import train

    quiet_libraries()
    quiet_bitsandbytes()
    for name, value in rank_environment(1).items():
        if name != "OMP_NUM_THREADS":  # torch has its threads already
            os.environ[name] = value
    code = train(recipe, folder.path, resume=resume, ds_config_file=ds_config)
    if code == 0:
        write_report_of(folder.path)
    return code


def write_report_of(folder: Path) -> Path:
    """report.html of a run folder."""
    from memdiff.reporting.html import write_report

    return write_report(folder)
