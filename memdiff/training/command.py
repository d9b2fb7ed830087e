"""`memdiff train`, where no launcher started it: a recipe in, checks, ranks, an exit code out. No torch."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import typer

from memdiff.errors import ConfigError
from memdiff.processes.stops import Stops
from memdiff.recipe.mistakes import listed_mistakes
from memdiff.recipe.reading import read_recipe
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.announce import said_if_slow
from memdiff.runtime.file_errors import disk_told
from memdiff.runtime.from_here import from_here, shell_word
from memdiff.training.before_launch import check_arguments, check_before_launch
from memdiff.training.copied_run import bring_run
from memdiff.training.hostfile import read_hostfile
from memdiff.training.hosts import look_at
from memdiff.training.launcher import choose_world_size, ranks_without_gpus
from memdiff.training.run_folder import Resume, RunFolder, known_resume
from memdiff.training.start import CHECKING, run_ranks, way_on

REPORT = "report.html"


def checked_recipe(
    recipe: Path, out: Path | None, overrides: Sequence[str], *, every_mistake: bool = False
) -> tuple[Recipe, RunFolder]:
    """The recipe and the folder that the arguments name. Raises ConfigError."""
    with listed_mistakes(every_mistake):
        checked = read_recipe(recipe, overrides)
    return checked, RunFolder((out or Path("runs") / recipe.stem).resolve())


def train_recipe(
    recipe: Path,
    out: Path | None,
    overrides: Sequence[str],
    stops: Stops,
    *,
    gpus: int | None,
    hostfile: Path | None,
    resume: str,
    resume_from: str | None,
    ds_config: Path | None,
    dry_run: bool,
) -> int:
    """Starts the run's ranks, or says what would run. Returns the exit code. Raises ConfigError and CheckpointError."""
    with disk_told(recipe, out or "runs", resume_from or ds_config or hostfile or recipe), stops.leaving():
        how = known_resume(resume)
        check_pairs(gpus, hostfile, how, resume_from)
        checked, folder = checked_recipe(recipe, out, overrides, every_mistake=dry_run)
        hosts = read_hostfile(hostfile) if hostfile is not None else ()
        with said_if_slow(CHECKING):
            check_arguments(checked, folder, gpus, "auto" if resume_from else how, ds_config)
            world_size = sum(host.slots for host in hosts) or choose_world_size(gpus)
            checked.check_world_size(world_size)
            seen = look_at(hosts) if hosts else ()
            check_before_launch(checked, ds_config, world_size)
        note = None if hosts else ranks_without_gpus(gpus)
        if note is not None:
            typer.echo(note)
        if dry_run:
            from memdiff.training.preview import preview

            typer.echo("\n".join(preview(checked, folder, world_size, how, ds_config)))
            return 0
        if resume_from is not None:
            bring_run(resume_from, folder.path)
        arguments = words_of_ranks(recipe, folder, overrides, how, ds_config)
        with folder.prepare(checked, how, ds_config):
            more = way_on(checked, folder)
            if more is not None:
                typer.echo(f"this run is complete ({folder.status()['round']} rounds); for more, --set {more}")
            code = 0 if more else run_ranks(checked, folder, arguments, world_size, stops, seen)
        with suppress(OSError):  # who reads may be gone
            typer.echo("\n".join(last_lines(folder, code, terminal=sys.stdout.isatty())))
        return code


def check_pairs(gpus: int | None, hostfile: Path | None, resume: Resume, resume_from: str | None) -> None:
    """ConfigError where two arguments say the same in two ways."""
    if hostfile is not None and gpus is not None:
        raise ConfigError("--gpus and --hostfile both say how many ranks there are; give one")
    if resume_from is not None and resume == "never":
        raise ConfigError("--resume-from goes on with a run, and --resume never starts over; give one")


def words_of_ranks(
    recipe: Path, folder: RunFolder, overrides: Sequence[str], resume: Resume, ds_config: Path | None
) -> list[str]:
    """The command line of each rank. What `--resume never` asks for is done before they start."""
    return [
        *("train", str(recipe), "--out", str(folder.path)),
        *("--resume", "auto" if resume == "never" else resume),
        *(word for override in overrides for word in ("--set", override)),
        *(("--ds-config", str(ds_config.resolve())) if ds_config else ()),
    ]


def last_lines(folder: RunFolder, code: int, *, terminal: bool) -> list[str]:
    """Of a complete run what is there, and last the run folder, for programs; on a terminal the report to open and the
    next command. Of another the folder alone."""
    report = folder.path / REPORT
    if code or not report.is_file():
        return [from_here(str(folder.path))]
    if not terminal:
        return [f"complete: {REPORT} and {folder.model.name}/ lie in this folder", from_here(str(folder.path))]
    run = shell_word(folder.path)
    return [f"open {shell_word(report)}", f"next: memdiff sample {run} --num-images 16"]
