"""Sampling over several processes, one a GPU: they need no word from each other, so there is no process group."""

import contextlib
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from rich.progress import Progress

from memdiff.errors import LAST_LINE, CheckpointError, ConfigError, MemdiffError
from memdiff.processes.bound import bound_command, bound_environment
from memdiff.processes.file_lock import FileLock
from memdiff.reporting.grid import image_grid
from memdiff.runtime.announce import on_stderr, said_if_slow
from memdiff.runtime.image_files import GRID, IMAGE, SETTINGS, open_image, sample_settings, sampled_images
from memdiff.runtime.numbered import numbered
from memdiff.runtime.screen import screen
from memdiff.runtime.units import counted
from memdiff.sampling.request import SampleRequest, replaces_others
from memdiff.training.launcher import choose_world_size, rank_environment, ranks_without_gpus

MOST_IN_GRID = 64
WIDEST = 8  # tiles of a labelled grid
LABELLED_TILE = 112  # pixels: room for some words
LOCK = "sample.lock"


def sample_over_processes(request: SampleRequest, gpus: int | None) -> Path:
    """Writes the images, grid.png and settings.json; returns the folder. Exactly `num_images` images lie there.

    None where it fails: a part of them would pass for the result.
    """
    folder = Path(request.out)
    with said_if_slow("loading torch", on_stderr):
        world_size = min(choose_world_size(gpus), request.num_images)
        note = ranks_without_gpus(gpus)
    if note is not None:
        on_stderr(note)
    with own_folder(folder):
        if replaces_others(request, folder):
            on_stderr(f"images of other settings in {folder} are replaced; another --out keeps both")
        clear_folder(folder)
        for name in (SETTINGS, GRID):
            (folder / name).unlink(missing_ok=True)  # a link of that name is not written through
        (folder / SETTINGS).write_text(request.model_dump_json(indent=2))
        try:
            _sample(request, folder, world_size)
        except MemdiffError:
            clear_folder(folder)
            raise
        files = sampled_images(folder)
        assert len(files) == request.num_images, f"{len(files)} images were written, {request.num_images} asked for"
        shown = files[:MOST_IN_GRID]
        grid_of(shown, request.prompts_of(range(len(shown))) if request.prompts else None).save(folder / GRID)
    return folder


def _sample(request: SampleRequest, folder: Path, world_size: int) -> None:
    console = screen(stderr=True)
    words = f"sampling {counted(request.num_images, 'image')}"
    with (
        nullcontext() if console.is_terminal else said_if_slow(words, on_stderr),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("sampling", total=request.num_images)
        if world_size == 1:
            from memdiff.runtime.ranks import ranks_of_this_process
            from memdiff.sampling.sample import sample_block

            sample_block(request, ranks_of_this_process(), lambda count: progress.advance(task, count))
        else:
            _run_processes(folder, world_size, lambda done: progress.update(task, completed=done))


def own_folder(folder: Path) -> FileLock:
    """Makes the folder, and returns the lock that keeps other calls out of it.

    Raises CheckpointError where one is at work in it.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holder = lock.acquire()
    except OSError as error:
        raise ConfigError(f"--out {folder} can't be written: {error.strerror}") from None
    if holder is not None:
        raise CheckpointError(f"--out {folder} is in use: {holder} samples into it; wait for its end, or give another")
    return lock


def clear_folder(folder: Path) -> None:
    """Removes what an earlier call wrote into the folder. What others wrote is never removed.

    Raises ConfigError where it holds files of others under the names that will be written.
    """
    if sample_settings(folder) is None:
        foreign = [*sampled_images(folder), *(file for name in (SETTINGS, GRID) if (file := folder / name).exists())]
        if foreign:
            raise ConfigError(
                f"--out {folder} holds {foreign[0].name}, which memdiff did not write; give another folder"
            )
        return
    for file in (*sampled_images(folder), *numbered(folder, IMAGE, ".tmp").values(), folder / GRID):
        file.unlink(missing_ok=True)


def grid_of(files: list[Path], labels: list[str] | None = None) -> Image.Image:
    """PNG files of one size as one grid, each over its label; a label that comes again stands in one column."""
    pictures = [np.asarray(open_image(file)) for file in files]
    images = np.stack([picture[..., None] if picture.ndim == 2 else picture for picture in pictures])
    if labels is None:
        return image_grid(images)
    different = len(set(labels))
    columns = different * (WIDEST // different) if 1 < different <= WIDEST else None
    return image_grid(images, columns=columns, labels=labels, smallest_tile=LABELLED_TILE)


def _run_processes(folder: Path, world_size: int, update) -> None:
    """One process a rank; the first that fails ends the others."""
    processes: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as open_files:
        said = [open_files.enter_context(_text_file()) for _ in range(world_size)]
        for rank, stderr in enumerate(said):
            environment = rank_environment(world_size) | bound_environment()
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            command = bound_command("memdiff.sampling.sample", str(folder / SETTINGS))
            processes.append(subprocess.Popen(command, env=environment, stderr=stderr, text=True))
        try:
            while any(process.poll() is None for process in processes):
                if any(process.poll() for process in processes):
                    break
                update(len(sampled_images(folder)))
                time.sleep(0.2)
            failed = next((rank for rank, process in enumerate(processes) if process.poll()), None)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed is not None:
            raise _failure(processes[failed].returncode, said[failed])


def _text_file() -> IO[str]:
    """A file and not a pipe: a process that says more than a pipe holds would wait for ever."""
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def _failure(exit_code: int, said: IO[str]) -> MemdiffError:
    said.seek(0)
    lines = said.read().strip().splitlines()
    match = next((match for line in lines if (match := LAST_LINE.match(line))), None)
    if match is None:
        last = lines[-1] if lines else "nothing was said"
        return MemdiffError(f"a sampling process ended with code {exit_code}: {last}")
    error = MemdiffError(match[2])
    error.exit_code = exit_code
    return error
