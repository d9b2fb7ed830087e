"""Whether the ranks of several hosts see one run folder: each writes its part of a checkpoint into it."""

import os
import socket
import time

from memdiff.errors import ConfigError
from memdiff.runtime.ranks import Ranks
from memdiff.training.run_folder import LOCK, RunFolder

SECONDS_TO_SEE = 10.0  # what another host wrote, over a network


def refuse_other_folders(folder: RunFolder, ranks: Ranks) -> None:
    """ConfigError, on all ranks, where one does not find the lock that the first one holds. Collective."""
    if int(os.environ.get("CROSS_SIZE", "1")) == 1:
        return
    file = folder.path / LOCK
    said = ranks.broadcast(f"{socket.gethostname()}\n{_text(folder)}" if ranks.is_first else None) or ""
    first, _, text = said.partition("\n")
    deadline = time.monotonic() + SECONDS_TO_SEE
    while _text(folder) != text and time.monotonic() < deadline:
        time.sleep(0.1)
    error = None if _text(folder) == text else ConfigError(socket.gethostname())
    failure = ranks.first_error(error)
    if failure is not None:
        raise ConfigError(
            f"{file.parent} on host {failure[2]} is not the folder of that name on {first}: all hosts have to share it,"
            " as over NFS; give such an --out"
        )


def _text(folder: RunFolder) -> str:
    try:
        return (folder.path / LOCK).read_text()
    except OSError:
        return ""
