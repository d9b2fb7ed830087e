"""Checkpoints of a run: every rank's shard, the round's state, and a manifest with checksums, written last.

A folder without a manifest that verifies is never chosen. DeepSpeed's own `latest` file is not used: it is written,
not atomically, before the other ranks' shards exist.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from memdiff.engine.engine import DeepSpeedEngine
from memdiff.errors import CheckpointError
from memdiff.ranks import Ranks

MANIFEST = "MANIFEST.json"
STATE = "state.json"


class Checkpoints:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int) -> None:
        self.folder, self._ranks, self._keep = folder, ranks, keep

    def save(self, engine: DeepSpeedEngine, state: dict[str, Any]) -> Path:
        """Writes `round_N`, N being `state["round"]`, and removes the oldest beyond `keep`. Collective."""
        final = self.folder / f"round_{state['round']:06d}"
        partial = final.with_suffix(".tmp")
        if self._ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._ranks.barrier()
        engine.save(partial)
        self._ranks.barrier()
        if self._ranks.is_first:
            (partial / STATE).write_text(json.dumps(state | {"world_size": self._ranks.world_size}, indent=2))
            _write_manifest(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync(self.folder)
            self._remove_old()
        self._ranks.barrier()
        return final

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose manifest verifies, and its state; the same on every rank. None: there is none.

        Raises CheckpointError where there are checkpoints and none of them is whole.
        """
        found, error = None, None
        if self._ranks.is_first:
            try:
                found = self._newest_whole()
            except CheckpointError as problem:
                error = problem
        told = self._ranks.first_error(error)
        if told is not None:
            raise CheckpointError(told[2])
        name = self._ranks.broadcast(found.name if found else None)
        if name is None:
            return None
        path = self.folder / name
        state = json.loads((path / STATE).read_text())
        if state["world_size"] != self._ranks.world_size:
            raise CheckpointError(
                f"{path} was written by {state['world_size']} ranks and this run has {self._ranks.world_size}; "
                f"start it with --gpus {state['world_size']}"
            )
        return path, state

    def load(self, engine: DeepSpeedEngine, path: Path) -> None:
        """Weights, optimizer state and average of every rank."""
        engine.load(path)

    def _newest_whole(self) -> Path | None:
        candidates = sorted(self.folder.glob("round_*[0-9]"), reverse=True)
        for candidate in candidates:
            if _is_whole(candidate):
                return candidate
        if candidates:
            raise CheckpointError(
                f"none of the {len(candidates)} checkpoints in {self.folder} is whole; "
                "use another --out, or start over with --resume never"
            )
        return None

    def _remove_old(self) -> None:
        for old in sorted(self.folder.glob("round_*[0-9]"), reverse=True)[self._keep :]:
            shutil.rmtree(old)


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for path in files:
        _sync(path)
        entries[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(entries, indent=2))
    _sync(manifest)
    _sync(folder)


def _is_whole(folder: Path) -> bool:
    try:
        entries = json.loads((folder / MANIFEST).read_text())
        return bool(entries) and all(
            (folder / name).stat().st_size == entry["bytes"] and _sha256(folder / name) == entry["sha256"]
            for name, entry in entries.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
