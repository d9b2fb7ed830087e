"""Checkpoints of a run: every rank's shard, the round's state, and a manifest with checksums, written last.

A folder without a manifest that verifies is never chosen. What people put beside the run's own folders is never chosen,
counted or deleted: another name, a link, a copy whose state is of another round. DeepSpeed's own `latest` file is not
used: it is written, not atomically, before the other ranks' shards exist.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memdiff.engine.engine import DeepSpeedEngine
from memdiff.errors import CheckpointError
from memdiff.methods.learner import Learner
from memdiff.runtime.numbered import name_of, numbered
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks

MANIFEST = "MANIFEST.json"
STATE = "state.json"
LEARNERS = "learners.pt"
PREFIX, PARTIAL = "round_", ".tmp"


class Checkpoints:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int) -> None:
        self.folder, self._ranks, self._keep = folder, ranks, keep

    def save(
        self, engine: DeepSpeedEngine, state: dict[str, Any], learners: Mapping[str, Learner[Any]] | None = None
    ) -> Path:
        """Writes `round_N`, N being `state["round"]`, and removes the oldest beyond `keep`. Collective.

        `learners` are a method's own networks, equal on every rank: the first one's are written.
        """
        final = self.folder / name_of(PREFIX, state["round"])
        partial = self.folder / name_of(PREFIX, state["round"], PARTIAL)
        if self._ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._ranks.barrier()
        engine.save(partial)
        self._ranks.barrier()
        if self._ranks.is_first:
            if learners:
                torch.save({name: learner.state_dict() for name, learner in learners.items()}, partial / LEARNERS)
            (partial / STATE).write_text(json.dumps(state | {"world_size": self._ranks.world_size}, indent=2))
            _write_manifest(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync(self.folder)
            self._remove_old(state["round"])
        self._ranks.barrier()
        return final

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose manifest verifies, and its state; the same on every rank. None: there is none.

        Raises CheckpointError where there are checkpoints and none of them is whole.
        """
        newest_path, error = None, None
        if self._ranks.is_first:
            try:
                newest_path = self._newest_whole()
            except CheckpointError as problem:
                error = problem
        failure = self._ranks.first_error(error)
        if failure is not None:
            raise CheckpointError(failure[2])
        name = self._ranks.broadcast(newest_path.name if newest_path else None)
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

    def load(self, engine: DeepSpeedEngine, path: Path, learners: Mapping[str, Learner[Any]] | None = None) -> None:
        """Weights, optimizer state and average of every rank, and the method's own networks."""
        engine.load(path)
        if learners:
            states = torch.load(path / LEARNERS, weights_only=True, map_location=HOST)
            for name, learner in learners.items():
                learner.load_state_dict(states[name])

    def _newest_whole(self) -> Path | None:
        candidates = self._own()
        for candidate in reversed(candidates.values()):
            if _is_whole(candidate):
                return candidate
        if candidates:
            raise CheckpointError(
                f"none of the {len(candidates)} checkpoints in {self.folder} is whole; "
                "use another --out, or start over with --resume never"
            )
        return None

    def _own(self) -> dict[int, Path]:
        """What `save` wrote, whole or damaged, by round, in order."""
        paths_by_round = numbered(self.folder, PREFIX)
        return {number: path for number, path in paths_by_round.items() if _round_of(path) in (number, None)}

    def _remove_old(self, saved: int) -> None:
        """Of the checkpoints up to round `saved` all but the newest `keep`, and what was left half written or removed.

        Nothing goes unless that of `saved` verifies. Later ones were damaged, or the run would have gone on from them.
        """
        own = self._own()
        old = [path for number, path in own.items() if number <= saved][: -self._keep]
        if old and not _is_whole(own[saved]):
            return
        for path in old:
            # Under this name it is no checkpoint, should the removal be cut off.
            half = path.with_name(path.name + PARTIAL)
            shutil.rmtree(half, ignore_errors=True)
            path.rename(half)
        for half in numbered(self.folder, PREFIX, PARTIAL).values():
            shutil.rmtree(half, ignore_errors=True)


def _round_of(folder: Path) -> int | None:
    """Of the state that lies in it; None where that can't be read."""
    try:
        return int(json.loads((folder / STATE).read_text())["round"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
