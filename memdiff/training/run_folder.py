"""The folder of one run: who writes what, and how it survives being cut off. No torch."""

import errno
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from memdiff.errors import CheckpointError, ConfigError, MemdiffError
from memdiff.processes.ancestors import ancestors_of_environment
from memdiff.processes.file_lock import FileLock, Holder, holders_of_environment
from memdiff.recipe.contents import Contents, changed_contents, contents_of
from memdiff.recipe.reading import changed_keys, check_recipe, recipe_hash
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.rows import read_rows
from memdiff.runtime.numbered import name_of, numbered
from memdiff.runtime.small_files import open_to_append, own_bytes, write_new

State = Literal["running", "complete", "stopped", "failed"]
Resume = Literal["auto", "must", "never"]
LOCK = "run.lock"
OF_THE_DISK = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO}  # and not of the name
MANIFEST = "MANIFEST.json"  # of a checkpoint, written last


def known_resume(word: str) -> Resume:
    """The word of --resume. Raises ConfigError for another one."""
    if word not in get_args(Resume):
        raise ConfigError(f"--resume must be auto, must or never, got {word!r}")
    return cast("Resume", word)


class RunFolder:
    """Paths and files of a run. Only the first rank writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.best_model = path / "model_best"
        self._config, self._status = path / "config.yaml", path / "status.json"
        self._contents = path / "contents.json"
        self.events = path / "events.jsonl"
        self._rows_to_write: list[str] = []

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self._config.is_file()

    def prepare(self, recipe: Recipe, resume: Resume, ds_config: Path | None = None) -> FileLock:
        """Makes the folder, or checks that the run in it is this one; `never` moves an old run aside first.

        Returns the lock that keeps other runs out of it, to be released when the run has ended. Raises CheckpointError
        where another run is going on in it, before anything is changed.
        """
        if resume == "must" and not self.exists():
            raise CheckpointError(f"--resume must: {self.path} holds no run; leave --resume out to start one")
        contents = contents_of(recipe, ds_config)
        lock = self._locked()
        try:
            if self.exists() and resume == "never":
                (self.move_aside() / LOCK).unlink(missing_ok=True)
                lock.release()
                lock = self._locked()
            if self.exists():
                self.check_same(recipe, contents)
            self._create(recipe, contents)
        except BaseException:
            lock.release()
            raise
        return lock

    def _locked(self) -> FileLock:
        """The lock, taken: alone, or with the `memdiff train` that started this process."""
        lock = FileLock(self.path / LOCK)
        friends = *map(Holder.here, ancestors_of_environment().values()), *holders_of_environment()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            holder = lock.acquire(friends=friends)
        except OSError as error:
            raise self._unwritable(error) from None
        if holder is not None:
            raise CheckpointError(
                f"{self.path} is in use: {holder} trains in it; wait for its end, stop it, or give another --out"
            )
        return lock

    def _create(self, recipe: Recipe, contents: Contents) -> None:
        """Writes the recipe, whole, with every default in it, and what its paths hold."""
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
            _write_atomically(self._config, text)
            _write_atomically(self._contents, json.dumps(contents, indent=2))
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> MemdiffError:
        words = f"--out {self.path} can't be written: {error.strerror}"
        return CheckpointError(words) if error.errno in OF_THE_DISK else ConfigError(words)

    def recipe(self) -> Recipe:
        """The recipe that was stored."""
        try:
            content = yaml.safe_load(own_bytes(self._config, within=self.path))
            if not isinstance(content, dict):
                raise ValueError("no mapping of sections")
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            cause = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self._config} can't be read ({cause}); restore it, give another --out, or --resume never to move "
                "the run aside"
            ) from None
        return check_recipe(content, source=str(self._config))

    def recipe_text(self) -> str:
        """The same, letter for letter; empty where it can't be read."""
        try:
            return self._config.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def check_place(self) -> None:
        """Raises ConfigError where the folder can't be made, CheckpointError where nothing can be written in it.

        Writes nothing.
        """
        for place in (self.path, *self.path.parents):
            try:
                place.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise self._unwritable(error) from None
            if not place.is_dir():
                raise ConfigError(f"--out {self.path}: {place} is there and is no folder; give another --out")
            if not os.access(place, os.W_OK | os.X_OK):
                raise CheckpointError(f"--out {self.path}: {place} can't be written in; give another --out")
            return

    def check_same(self, recipe: Recipe, contents: Contents) -> None:
        """Raises ConfigError where the stored recipe, or what its paths held, would give other weights.

        A path that is another one and holds the same is no change: the run may have been copied from elsewhere. A run
        that has not finished a round has no weights yet: its recipe may be corrected.
        """
        if not self._has_checkpoint() and not self.status().get("round", 0):
            return
        stored, held = self.recipe(), self._trained_with()
        keys = changed_keys(stored, recipe) if recipe_hash(stored) != recipe_hash(recipe) else []
        keys = [key for key in keys if not contents.get(key) or held.get(key) != contents[key]]
        keys += changed_contents(held, contents)
        if keys:
            raise ConfigError(
                f"{self.path} holds a run of another recipe (different: {', '.join(keys[:5])}); give another --out, or "
                "--resume never to move the old run aside and start over"
            )

    def _trained_with(self) -> Mapping[str, Any]:
        """The fingerprints that were stored; empty in a run without a checkpoint, and in one that stored none."""
        if not self._has_checkpoint():
            return {}  # it starts over: a reward that failed at its first call may be mended
        try:
            stored = json.loads(own_bytes(self._contents, within=self.path))
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _has_checkpoint(self) -> bool:
        return any((folder / "MANIFEST.json").is_file() for folder in numbered(self.checkpoints, "round_").values())

    def move_aside(self) -> Path:
        """Renames the folder to a free name beside it: nothing is deleted."""
        number = 1
        while os.path.lexists(target := self.path.with_name(f"{self.path.name}.previous-{number}")):
            number += 1
        self.path.rename(target)
        return target

    def status(self) -> dict[str, Any]:
        """What was last said of the run; empty where nothing was, or nothing that can be read."""
        try:
            status = json.loads(own_bytes(self._status, within=self.path))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    def what_is_saved(self) -> str:
        """What the run can go on from, in words."""
        saved = [number for number, path in numbered(self.checkpoints, "round_").items() if (path / MANIFEST).is_file()]
        if not saved:
            return "nothing had been trained and saved; the same command starts it"
        return f"round {saved[-1]} is the last that is saved; the same command goes on from there"

    def write_status(
        self, state: State, *, round_number: int, exit_code: int | None = None, message: str = "", **more: Any
    ) -> None:
        """status.json; keys not given here keep their values. Where it can't be written it goes: right or absent."""
        status = self.status() | {
            "state": state, "exit_code": exit_code, "round": round_number, "message": message, "pid": os.getpid(),
            "updated": _now(),
        } | more  # fmt: skip
        try:
            _write_atomically(self._status, json.dumps(status, indent=2))
        except OSError:
            with suppress(OSError):
                self._status.unlink()

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """plan.json, where there is room for it."""
        with suppress(OSError):
            _write_atomically(self.path / "plan.json", json.dumps(plan, indent=2))

    def add_row(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, flushed to the disk. OSError where it can't be: it comes with the next then."""
        self._rows_to_write.append(json.dumps(row) + "\n")
        with os.fdopen(open_to_append(self.metrics), "ab", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            try:
                _write_all(file, "".join(self._rows_to_write).encode())
                os.fsync(file.fileno())
            except OSError:
                os.truncate(file.fileno(), length)  # part of a line would join the next one
                raise
        self._rows_to_write.clear()

    def add_event(self, kind: str, round_number: int, text: str = "") -> None:
        """One line of events.jsonl: what happened to the run beside its rounds. Where there is no room it is lost."""
        event = {"time": _now(), "event": kind, "round": round_number, "text": text}
        with suppress(OSError), os.fdopen(open_to_append(self.events), "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return read_rows(self.metrics) if self.metrics.is_file() else []

    def drop_rows_after(self, round_number: int) -> None:
        """Rows of rounds that a resumed run makes again."""
        rounds = [(row, row.get("round")) for row in self.rows()]
        kept = [row for row, number in rounds if isinstance(number, int) and number <= round_number]
        _write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def sample_file(self, round_number: int) -> Path:
        """The grid of an evaluation."""
        return self.samples / name_of("round_", round_number, ".png")

    def write_tiles(self, round_number: int, tiles: Mapping[str, Any]) -> None:
        """Prompts and scores of the images in an evaluation's grid, beside it. Raises OSError."""
        write_new(self.sample_file(round_number).with_suffix(".json"), json.dumps(tiles))

    def sample_files(self) -> dict[int, Path]:
        """The grids of evaluations by their rounds, in order; other people's pictures are none."""
        return {number: file for number, file in numbered(self.samples, "round_", ".png").items() if file.is_file()}

    def drop_samples_after(self, round_number: int) -> None:
        """Grids of evaluations that a resumed run makes again."""
        for number, file in self.sample_files().items():
            if number > round_number:
                file.with_suffix(".json").unlink(missing_ok=True)
                file.unlink()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _write_all(file: RawIOBase, content: bytes) -> None:
    """A raw file takes less than it is given where the disk fills up, and raises only for the rest."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    try:
        partial.unlink(missing_ok=True)  # a link under this name is not followed
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
