"""Checkpoints of a run: every rank's shard, the round's state, and a manifest with checksums, written last.

A folder without a manifest that verifies is never chosen. What people put beside the run's own folders is never chosen,
counted or deleted: another name, a link, a copy whose state is of another round. DeepSpeed's own `latest` file is not
used: it is written, not atomically, before the other ranks' shards exist.
"""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from memdiff.engine.engine import SHARDS, DeepSpeedEngine
from memdiff.engine.manifest import STATE, defect_of, round_of, sync, write_manifest
from memdiff.errors import CheckpointError
from memdiff.methods.learner import Learner
from memdiff.processes import landmarks
from memdiff.runtime.numbered import name_of, numbered
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.small_files import own_bytes

LEARNERS = "learners.pt"
PREFIX, PARTIAL = "round_", ".tmp"
FAILURES_IN_A_ROW = 3  # to save, before a run ends for it
MIB = 2**20
OF_TORCH = re.compile(r"^\[enforce fail at [^\]]*\] \. ")  # before the words of its zip writer
NOT_READ = "a pickle in it is damaged, or names code of which nothing was run"  # torch advises to run it
WAY_OUT = "use another --out, or start over with --resume never"


class Checkpoints:
    """The `checkpoints/` folder of a run. `say` takes a line that people read, on the first rank.

    `learners` are a method's own networks, equal on every rank: the first one's are written.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        keep: int,
        learners: Mapping[str, Learner[Any]] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self._ranks, self._keep, self._say = folder, ranks, keep, say
        self.learners: Mapping[str, Learner[Any]] = learners or {}
        self.failures = 0  # in a row

    def save(self, engine: DeepSpeedEngine, state: dict[str, Any]) -> Path | None:
        """Writes `round_N`, N being `state["round"]`, and removes the oldest beyond `keep`. Collective.

        None where a rank could not write: what was saved before is as it was, and a line says why. Raises
        CheckpointError for the third time in a row.
        """
        final = self.folder / name_of(PREFIX, state["round"])
        partial = self.folder / name_of(PREFIX, state["round"], PARTIAL)
        with landmarks.at("save"):
            error = self._write(engine, state, partial, final)
            if error is None:
                self.failures = 0
                if self._ranks.is_first:
                    self._remove_old(state["round"])
                return final
            if self._ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
        self.failures += 1
        problem = f"round {state['round']} could not be saved by rank {error[0]}: {error[2]}{self._room(engine)}"
        if self.failures == FAILURES_IN_A_ROW:
            raise CheckpointError(f"{problem}; that is the third time in a row")
        self._say(f"warning: {problem}; the run goes on, and what was saved before is as it was")
        return None

    def _write(
        self, engine: DeepSpeedEngine, state: dict[str, Any], partial: Path, final: Path
    ) -> tuple[int, str, str] | None:
        """What the lowest rank that could not write has to say; the same on every rank."""
        for step in (self._begin, self._write_shards, self._conclude):
            error = None
            try:
                step(engine, state, partial, final)
            except (OSError, RuntimeError, CheckpointError) as problem:  # torch's zip writer raises RuntimeError
                error = CheckpointError(_cause(problem, partial))
            failure = self._ranks.first_error(error)
            if failure is not None:
                return failure
        return None

    def _begin(self, engine: DeepSpeedEngine, state: dict[str, Any], partial: Path, final: Path) -> None:
        landmarks.go_to("save.begin")
        if self._ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / SHARDS).mkdir(parents=True)  # DeepSpeed's own attempt hides why it fails

    def _write_shards(self, engine: DeepSpeedEngine, state: dict[str, Any], partial: Path, final: Path) -> None:
        engine.save(partial)
        landmarks.go_to("save.after_shard")

    def _conclude(self, engine: DeepSpeedEngine, state: dict[str, Any], partial: Path, final: Path) -> None:
        """Only the first rank: state, manifest, name. The name is what makes a checkpoint of it."""
        if not self._ranks.is_first:
            return
        if self.learners:
            torch.save({name: learner.state_dict() for name, learner in self.learners.items()}, partial / LEARNERS)
        (partial / STATE).write_text(json.dumps(state | {"world_size": self._ranks.world_size}, indent=2))
        landmarks.go_to("save.before_manifest")
        write_manifest(partial)
        landmarks.go_to("save.before_rename")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(self.folder)
        landmarks.go_to("save.after_rename")

    def _room(self, engine: DeepSpeedEngine) -> str:
        """What a checkpoint needs over all ranks, and what there is. Collective."""
        needed = float(self._ranks.sum(torch.tensor(float(engine.checkpoint_bytes()), device=self._ranks.device)))
        try:
            free = shutil.disk_usage(self.folder if self.folder.is_dir() else self.folder.parent).free
        except OSError:
            return ""
        return f" (needs about {needed / MIB:.1f} MiB, {free / MIB:.1f} MiB are free)"

    def latest(self, *, before: int | None = None) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose manifest verifies, and its state; the same on every rank. None: there is none.

        `before`: only those of earlier rounds. A line says of each that was passed over why. Raises CheckpointError
        where there are checkpoints and none of them is whole.
        """
        newest, error = None, None
        if self._ranks.is_first:
            try:
                newest = self._newest_whole(before)
            except CheckpointError as problem:
                error = CheckpointError(NOT_READ) if isinstance(problem, pickle.UnpicklingError) else problem
        failure = self._ranks.first_error(error)
        if failure is not None:
            raise CheckpointError(failure[2])
        name = self._ranks.broadcast(newest.name if newest else None)
        if name is None:
            return None
        path = self.folder / name
        state = json.loads(own_bytes(path / STATE, within=path))
        if state["world_size"] != self._ranks.world_size:
            raise CheckpointError(
                f"{path} was written by {state['world_size']} ranks and this run has {self._ranks.world_size}; "
                f"start it with --gpus {state['world_size']}"
            )
        return path, state

    def restore(
        self, engine: DeepSpeedEngine, take_up: Callable[[dict[str, Any]], None] = lambda state: None
    ) -> tuple[Path, dict[str, Any]] | None:
        """Loads the newest whole checkpoint that can be loaded, on every rank, and returns it as `latest` does.

        `take_up` is given its state, and raises where it is not what a run wrote.
        """
        newest = self.latest()
        while newest is not None:
            error, (path, state) = None, newest
            try:
                self.load(engine, path)
                take_up(state)
            except Exception as problem:  # a damaged or foreign file ends in whatever exception its bytes lead to
                error = CheckpointError(NOT_READ) if isinstance(problem, pickle.UnpicklingError) else problem
            failure = self._ranks.first_error(error)
            if failure is None:
                return newest
            self._say(f"warning: passed over {path}: rank {failure[0]} can't load it: {' '.join(failure[2].split())}")
            newest = self.latest(before=state["round"])
            if newest is None:
                raise CheckpointError(f"none of the checkpoints in {self.folder} can be loaded; {WAY_OUT}")
        return None

    def load(self, engine: DeepSpeedEngine, path: Path) -> None:
        """Weights, optimizer state and average of every rank, and the method's own networks."""
        engine.load(path)
        if self.learners:
            states = torch.load(path / LEARNERS, weights_only=True, map_location=HOST)
            for name, learner in self.learners.items():
                learner.load_state_dict(states[name])

    def _newest_whole(self, before: int | None) -> Path | None:
        own = self._own()
        candidates = {number: path for number, path in own.items() if before is None or number < before}
        for number, candidate in reversed(numbered(self.folder, PREFIX).items()):
            if number not in candidates:
                if number not in own:
                    self._say(
                        f"warning: passed over {candidate}: its {STATE} is of round {round_of(candidate)}, a copy"
                    )
                continue
            defect = defect_of(candidate)
            if defect is None:
                return candidate
            self._say(f"warning: passed over {candidate}: {defect}")
        if candidates:
            raise CheckpointError(f"none of the {len(own)} checkpoints in {self.folder} is whole; {WAY_OUT}")
        return None

    def _own(self) -> dict[int, Path]:
        """What `save` wrote, whole or damaged, by round, in order."""
        paths_by_round = numbered(self.folder, PREFIX)
        return {number: path for number, path in paths_by_round.items() if round_of(path) in (number, None)}

    def _remove_old(self, saved: int) -> None:
        """Of the checkpoints up to round `saved` all but the newest `keep`, and what was left half written or removed.

        Nothing goes unless that of `saved` verifies. Later ones were damaged, or the run would have gone on from them.
        One that can't be removed is a line: the run's state is saved.
        """
        own = self._own()
        old = [path for number, path in own.items() if number <= saved][: -self._keep]
        if old and defect_of(own[saved]) is not None:
            return
        landmarks.go_to("retention")
        for path in old:
            # Under this name it is no checkpoint, should the removal be cut off.
            half = path.with_name(path.name + PARTIAL)
            shutil.rmtree(half, ignore_errors=True)
            try:
                path.rename(half)
            except OSError as error:
                self._say(f"warning: {path}, which is no longer needed, can't be removed: {error.strerror or error}")
        for half in numbered(self.folder, PREFIX, PARTIAL).values():
            shutil.rmtree(half, ignore_errors=True)


def _cause(error: Exception, path: Path) -> str:
    """What went wrong with a write, in one line: torch's zip writer says only that it failed."""
    if isinstance(error, OSError):
        return f"{error.filename or path}: {error.strerror or error}"
    if isinstance(error, CheckpointError):
        return str(error)
    return f"{path}: {OF_TORCH.sub('', str(error).splitlines()[0])[:200]}"
