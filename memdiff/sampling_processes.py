"""Sampling over several processes, one a GPU: they need no word from each other, so there is no process group."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from memdiff.errors import ConfigError, MemdiffError
from memdiff.launcher import choose_world_size, rank_environment
from memdiff.report.grid import image_grid
from memdiff.sample_request import SampleRequest

MOST_IN_GRID = 64
WIDEST = 8  # tiles of a labelled grid
LABELLED_TILE = 112  # pixels: room for some words
SETTINGS = "settings.json"


def sample_over_processes(request: SampleRequest, gpus: int | None) -> Path:
    """Writes the images, grid.png and settings.json; returns the folder. Exactly `num_images` images lie there."""
    folder = Path(request.out)
    clear_folder(folder)
    world_size = min(choose_world_size(gpus), request.num_images)
    (folder / SETTINGS).write_text(request.model_dump_json(indent=2))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=request.num_images)
        if world_size == 1:
            from memdiff.ranks import ranks_of_this_process
            from memdiff.sample import sample_block

            sample_block(request, ranks_of_this_process(), lambda count: progress.advance(task, count))
        else:
            _run_processes(folder, world_size, lambda done: progress.update(task, completed=done))
    files = sorted(folder.glob("image_*.png"))
    assert len(files) == request.num_images, f"{len(files)} images were written, {request.num_images} asked for"
    shown = files[:MOST_IN_GRID]
    grid_of(shown, request.prompts_of(range(len(shown))) if request.prompts else None).save(folder / "grid.png")
    return folder


def clear_folder(folder: Path) -> None:
    """Makes the folder, or removes the images of an earlier call from it. Foreign images are never removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder} can't be written: {error.strerror}") from None
    old = [*folder.glob("image_*.png"), *folder.glob("image_*.tmp")]
    if old and not (folder / SETTINGS).is_file():
        raise ConfigError(f"--out {folder} holds images that memdiff did not write; give another folder")
    for file in old:
        file.unlink()


def grid_of(files: list[Path], labels: list[str] | None = None) -> Image.Image:
    """PNG files of one size as one grid, each over its label; a label that comes again stands in one column."""
    pictures = [np.asarray(Image.open(file)) for file in files]
    images = np.stack([picture[..., None] if picture.ndim == 2 else picture for picture in pictures])
    if labels is None:
        return image_grid(images)
    different = len(set(labels))
    columns = different * (WIDEST // different) if 1 < different <= WIDEST else None
    return image_grid(images, columns=columns, labels=labels, smallest_tile=LABELLED_TILE)


def _run_processes(folder: Path, world_size: int, update) -> None:
    """One process a rank; the first that fails ends the others."""
    processes = []
    for rank in range(world_size):
        environment = rank_environment(world_size)
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        command = [sys.executable, "-m", "memdiff.sample", str(folder / SETTINGS)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            update(len(list(folder.glob("image_*.png"))))
            time.sleep(0.2)
        _raise_first_failure([process for process in processes if process.poll()])
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _raise_first_failure(failed: list[subprocess.Popen[str]]) -> None:
    if not failed:
        return
    assert failed[0].stderr is not None
    lines = failed[0].stderr.read().strip().splitlines()
    said = next((line for line in lines if line.startswith("memdiff: error[")), None)
    if said is None:
        last = lines[-1] if lines else "nothing was said"
        raise MemdiffError(f"a sampling process ended with code {failed[0].returncode}: {last}")
    error = MemdiffError(said.partition("]: ")[2])
    error.exit_code = failed[0].returncode
    raise error
