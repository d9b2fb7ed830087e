"""A run that was begun elsewhere, brought here to go on: from a copied folder, or from the hub. No torch."""

import os
import shutil
from pathlib import Path

from memdiff.errors import CheckpointError
from memdiff.runtime.small_files import home_of

HUB = "hf://"
NEEDED = ("config.yaml", "checkpoints")
LEFT = ("run.lock", "launcher.log", "status.json")  # what is of the other machine's processes


def bring_run(source: str, out: Path) -> bool:
    """Copies the run in `source` to `out`, unless `out` holds a run already, which then goes on. Says whether it did.

    `source` is a folder or hf://owner/name, a model repository that the run folder was uploaded to. Raises
    CheckpointError where there is no run with checkpoints.
    """
    if (out / NEEDED[0]).is_file():
        return False
    folder = _downloaded(source.removeprefix(HUB), out) if source.startswith(HUB) else Path(source)
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise CheckpointError(f"--resume-from {source}: no {missing[0]} there; give a run folder that was copied whole")
    _check_links(folder, source)
    try:
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*LEFT), dirs_exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"--resume-from {source} can't be copied to {out}: {error}") from None
    return True


def _check_links(folder: Path, source: str) -> None:
    """Raises CheckpointError for a link that leads elsewhere: what lies there is not the run's."""
    home = home_of(folder)
    for path in folder.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
            raise CheckpointError(f"--resume-from {source}: {path.name} is a link out of the run; copy the run whole")


def _downloaded(name: str, out: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"--resume-from {HUB}{name} can't be fetched to {out}: {first}") from None
