"""A run folder belongs to one run at a time, and nothing in it but what memdiff wrote is counted, read or deleted."""

import errno
import hashlib
import json
import os
import random
import shutil
import socket
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from memdiff.engine.checkpoint import Checkpoints, _cause
from memdiff.engine.engine import DeepSpeedEngine
from memdiff.engine.manifest import MANIFEST, STATE, write_manifest
from memdiff.errors import CheckpointError, ConfigError
from memdiff.processes import ancestors
from memdiff.processes.identity import own_identity
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.folder import read_folder
from memdiff.runtime.numbered import numbered
from memdiff.runtime.ranks import Ranks
from memdiff.sampling.processes import LOCK as SAMPLE_LOCK
from memdiff.sampling.processes import SETTINGS, clear_folder, own_folder
from memdiff.training.run_folder import LOCK, OF_THE_DISK, RunFolder

RECIPE = Recipe.model_validate(
    {"model": {"kind": "embedded"}, "method": {"kind": "reinforce"}, "reward": [{"kind": "digits"}]}
)
IN_USE = f"is in use: process {os.getpid()} on {socket.gethostname()}"


@pytest.mark.parametrize("resume", ["auto", "must", "never"])
def test_a_folder_in_use_is_refused(resume: Any, tmp_path: Path) -> None:
    """Exit code 5 by pid and host, before anything is moved or written; free again when the run has ended."""
    folder = RunFolder(tmp_path / "run")
    with folder.prepare(RECIPE, "auto"):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(CheckpointError, match=IN_USE) as refused:
            RunFolder(tmp_path / "run").prepare(RECIPE, resume)
        assert refused.value.exit_code == 5
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with folder.prepare(RECIPE, resume):
        assert sorted(path.name for path in tmp_path.iterdir()) == (
            ["run", "run.previous-1"] if resume == "never" else ["run"]
        )
        assert list(tmp_path.rglob(LOCK)) == [tmp_path / "run" / LOCK]
        with pytest.raises(CheckpointError, match=IN_USE):
            RunFolder(tmp_path / "run").prepare(RECIPE, "auto")
    assert not list(tmp_path.rglob(LOCK))


def test_a_rank_shares_the_folder_of_the_memdiff_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known by its identity, not by a word that a stranger could have in its environment too."""
    folder = RunFolder(tmp_path / "run")
    with folder.prepare(RECIPE, "auto") as lock:
        monkeypatch.setenv(ancestors.VARIABLE, f"memdiff={os.getpid()}:1")
        with pytest.raises(CheckpointError, match=IN_USE):
            folder.prepare(RECIPE, "auto")
        monkeypatch.setenv(ancestors.VARIABLE, f"memdiff={own_identity()}")
        with folder.prepare(RECIPE, "auto"):
            lock.release()  # as the kernel does for a `memdiff train` that was killed
            monkeypatch.delenv(ancestors.VARIABLE)
            with pytest.raises(CheckpointError, match="is in use"):
                folder.prepare(RECIPE, "auto")


def test_refusals_leave_the_folder_free(tmp_path: Path) -> None:
    """Another recipe, or no run where one must be: told, and the folder is as it was."""
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds no run"):
        folder.prepare(RECIPE, "must")
    assert not folder.path.exists()
    folder.prepare(RECIPE, "auto").release()
    folder.write_status("stopped", round_number=1)
    other = RECIPE.model_copy(update={"optimizer": RECIPE.optimizer.model_copy(update={"learning_rate": 1.0})})
    for _ in range(2):
        with pytest.raises(ConfigError, match="another recipe"):
            folder.prepare(other, "auto")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be written"):
        RunFolder(tmp_path / "file").prepare(RECIPE, "auto")


@pytest.mark.parametrize("number", sorted(OF_THE_DISK), ids=errno.errorcode.get)
def test_a_disk_that_can_not_be_written_has_the_run_folders_code(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only, full, of another user: exit code 5, where a name that can't be is an argument's 2."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(CheckpointError, match=f"can't be written: {os.strerror(number)}$") as refused:
        RunFolder(tmp_path / "run").prepare(RECIPE, "auto")
    assert refused.value.exit_code == 5


def test_a_name_that_is_taken_is_not_moved_onto(tmp_path: Path) -> None:
    """Also not one that is a link to nowhere."""
    (tmp_path / "run.previous-1").symlink_to(tmp_path / "nowhere")
    folder = RunFolder(tmp_path / "run")
    folder.prepare(RECIPE, "auto").release()
    assert folder.move_aside() == tmp_path / "run.previous-2"


def test_only_names_that_memdiff_gives_are_numbered(tmp_path: Path) -> None:
    """Six digits, more only where they are needed, no link; in the order of the numbers."""
    for name in ("round_000010", "round_1000000", "round_000003"):
        (tmp_path / name).mkdir()
    for name in (
        "round_best_3",
        "round_000003_backup_2024",
        "round_3",
        "round_0000003",
        "round_000003.tmp",
        "round_٠٠٠٠٠٤",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "round_000004").symlink_to(tmp_path / "round_000003")
    assert list(numbered(tmp_path, "round_")) == [3, 10, 1000000]
    assert list(numbered(tmp_path, "round_", ".tmp")) == [3]
    assert numbered(tmp_path / "missing", "round_") == {}


class _Shards:
    """In the engine's place: a file."""

    def save(self, folder: Path) -> None:
        (folder / "shard").write_text(str(folder.name))


def save(checkpoints: Checkpoints, round_number: int) -> Path:
    path = checkpoints.save(cast(DeepSpeedEngine, _Shards()), {"round": round_number})
    assert path is not None
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Three saved, two kept."""
    made = Checkpoints(tmp_path / "checkpoints", Ranks(0, 1, torch.device("cpu")), keep=2)
    for round_number in (2, 3, 4):
        save(made, round_number)
    return made


FOREIGN = ("round_best_3", "round_best_4", "round_000003_backup_2024", "round_3", "round_000009", "keep")


@pytest.mark.parametrize("copies", [FOREIGN[:2], FOREIGN], ids=["two", "all"])
def test_copies_that_people_make_are_left_alone(checkpoints: Checkpoints, copies: tuple[str, ...]) -> None:
    """`cp -r round_000003 round_best_3` and other names: the run goes on from 4, and they are there after 5 and 6.

    `round_000009` has a name of the run's own and a state of round 3: it is a copy too.
    """
    for name in copies:
        shutil.copytree(checkpoints.folder / "round_000003", checkpoints.folder / name)
    checkpoint = checkpoints.latest()
    assert checkpoint is not None and checkpoint[0].name == "round_000004" and checkpoint[1]["round"] == 4
    for round_number in (5, 6):
        save(checkpoints, round_number)
    assert names(checkpoints.folder) == sorted([*copies, "round_000005", "round_000006"])
    checkpoint = checkpoints.latest()
    assert checkpoint is not None and checkpoint[1]["round"] == 6


class _Loaded(_Shards):
    """One whose shards of some rounds can't be read, though their manifests verify."""

    def __init__(self, *damaged: int) -> None:
        self.damaged, self.tried = damaged, []

    def load(self, folder: Path) -> None:
        self.tried.append(int(folder.name.removeprefix("round_")))
        if self.tried[-1] in self.damaged:
            raise RuntimeError("PytorchStreamReader failed reading zip archive")


def test_what_verifies_and_can_not_be_loaded_is_passed_over(checkpoints: Checkpoints) -> None:
    """The one before is taken, with a line; where there is none, exit code 5 and never a start from nothing."""
    said: list[str] = []
    checkpoints._say = said.append
    engine = _Loaded(4)
    restored = checkpoints.restore(cast(DeepSpeedEngine, engine))
    assert restored is not None and restored[1]["round"] == 3 and engine.tried == [4, 3]
    assert len(said) == 1 and "round_000004: rank 0 can't load it: PytorchStreamReader failed" in said[0]
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* can be loaded") as refused:
        checkpoints.restore(cast(DeepSpeedEngine, _Loaded(3, 4)))
    assert refused.value.exit_code == 5


def test_another_number_of_ranks_is_refused(checkpoints: Checkpoints) -> None:
    """Its shards are those of as many ranks: both numbers are named, and what to do."""
    path = checkpoints.folder / "round_000004"
    (path / STATE).write_text(json.dumps(json.loads((path / STATE).read_text()) | {"world_size": 4}))
    (path / MANIFEST).unlink()
    write_manifest(path)
    with pytest.raises(CheckpointError, match=r"by 4 ranks and this run has 1; start it with --gpus 4$") as refused:
        checkpoints.latest()
    assert refused.value.exit_code == 5


def test_foreign_folders_alone_are_no_checkpoints(tmp_path: Path) -> None:
    """None to go on from, and none that is damaged."""
    (tmp_path / "round_best_3").mkdir()
    (tmp_path / "round_000003.tmp").mkdir()
    assert Checkpoints(tmp_path, Ranks(0, 1, torch.device("cpu")), keep=2).latest() is None


def test_what_a_killed_run_left_half_written_goes(checkpoints: Checkpoints) -> None:
    """A save that was cut off leaves round_N.tmp, which a later save removes, whatever its own round is."""
    shutil.copytree(checkpoints.folder / "round_000003", checkpoints.folder / "round_000007.tmp")
    (checkpoints.folder / "mine.tmp").mkdir()
    save(checkpoints, 5)
    assert names(checkpoints.folder) == ["mine.tmp", "round_000004", "round_000005"]


@pytest.mark.parametrize("keep", [1, 2])
def test_nothing_is_deleted_for_a_checkpoint_that_does_not_verify(
    keep: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of the new one is wrong on the disk: the older ones stay. A damaged later one takes nobody's place."""
    few = Checkpoints(checkpoints.folder, Ranks(0, 1, torch.device("cpu")), keep=keep)
    rename = Path.rename

    def damage(path: Path, target: Path) -> Path:
        if path.name == "round_000005.tmp":
            (path / "shard").write_text("round_000005.tmq")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", damage)
    save(few, 5)
    assert names(few.folder) == ["round_000003", "round_000004", "round_000005"]
    monkeypatch.undo()
    checkpoint = few.latest()
    assert checkpoint is not None and checkpoint[1]["round"] == 4
    save(few, 4)
    assert names(few.folder) == ["round_000003", "round_000004", "round_000005"][2 - keep :]


def test_why_a_save_failed_is_said_in_one_line(tmp_path: Path) -> None:
    """torch's zip writer puts its source's line before, and a call stack after."""
    path, words = tmp_path / "round_000002.tmp", "open file failed with strerror: Read-only file system"
    error = RuntimeError(f"[enforce fail at inline_container.cc:747] . {words}\nframe #0: c10::ThrowEnforceNotMet")
    assert _cause(error, path) == f"{path}: {words}"
    assert _cause(OSError(30, "Read-only file system", "shard"), path) == "shard: Read-only file system"


def test_an_old_checkpoint_that_stays_is_no_failed_save(checkpoints: Checkpoints) -> None:
    """A file of people's has the name that one which is removed gets first: a line, and the others still go."""
    said: list[str] = []
    checkpoints._say = said.append
    few = checkpoints.folder / "round_000003.tmp"
    few.write_text("mine")
    for round_number in (5, 6, 7):
        save(checkpoints, round_number)
    assert checkpoints.failures == 0 and few.read_text() == "mine"
    assert names(checkpoints.folder) == ["round_000003", few.name, "round_000006", "round_000007"]
    assert len(said) == 3 and all(
        "round_000003, which is no longer needed, can't be removed: " in line for line in said
    )


def test_pictures_that_people_put_beside_the_grids_are_left_alone(tmp_path: Path) -> None:
    """`samples/round_best.png`: neither dropped at a resume, nor a frame, nor in the report's place of round 3."""
    folder = RunFolder(tmp_path)
    folder.prepare(RECIPE, "auto").release()
    for name in ("round_000003.png", "round_000005.png", "round_best.png", "round_3.png", "round_9.png"):
        Image.new("L", (4, 4)).save(folder.samples / name)
    folder.add_row({"round": 3})
    assert read_folder(tmp_path).samples == {number: folder.sample_file(number) for number in (3, 5)}
    folder.drop_samples_after(3)
    assert names(folder.samples) == ["round_000003.png", "round_3.png", "round_9.png", "round_best.png"]
    assert list(folder.sample_files()) == [3]


def test_a_sample_folder_keeps_other_peoples_images(tmp_path: Path) -> None:
    """Only numbered images of an earlier call are removed; while a call is at work the folder is refused."""
    (tmp_path / "image_of_a_cat.png").touch()
    clear_folder(tmp_path)
    for name in ("image_000000.png", "image_000001.tmp", "image_1.png"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="did not write"):
        clear_folder(tmp_path)
    (tmp_path / SETTINGS).write_text(json.dumps({"num_images": 1, "sampler": {}, "prompts": []}))
    with own_folder(tmp_path):
        with pytest.raises(CheckpointError, match=IN_USE):
            own_folder(tmp_path)
        clear_folder(tmp_path)
        assert names(tmp_path) == ["image_1.png", "image_of_a_cat.png", SAMPLE_LOCK, SETTINGS]
    assert names(tmp_path) == ["image_1.png", "image_of_a_cat.png", SETTINGS]


def corrupt(folder: Path, older: Path, draw: random.Random) -> str:
    """One of seven kinds of damage to one file of a checkpoint. What was done."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    file = draw.choice(files)
    content = file.read_bytes()
    match draw.choice(("truncate", "flip", "delete", "swap", "empty", "append", "link")):
        case "truncate":
            file.write_bytes(content[: draw.randrange(len(content))])
        case "flip":
            bit = draw.randrange(8 * len(content))
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
        case "delete":
            file.unlink()
        case "swap":  # of the manifest: a whole older one, which is another checkpoint's
            shutil.copy(older / file.name, file)
        case "empty":
            (folder / "MANIFEST.json").write_text(draw.choice(("", "{}", "[]", "null", "3", '{"a": 1}', "[" * 9000)))
        case "append":
            file.write_bytes(content + b"\0")
        case "link":
            file.unlink()
            file.symlink_to(older / file.name)
    return file.name


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_damage_is_seen_before_anything_is_loaded(both: bool, tmp_path: Path) -> None:
    """150 kinds of damage to the newest of two checkpoints: the older one is taken, with a line by name and reason;
    50 to both: exit code 5. A manifest whose bytes changed without a word of it changing is no damage."""
    draw, said, ends = random.Random(1), [], 0
    for number in range(50 if both else 150):
        made = Checkpoints(tmp_path / str(number), Ranks(0, 1, torch.device("cpu")), keep=2, say=said.append)
        paths = [save(made, round_number) for round_number in (3, 4)]
        spare = Path(shutil.copytree(paths[0], tmp_path / "spare", dirs_exist_ok=True))
        for path in reversed(paths) if both else paths[1:]:
            corrupt(path, spare if path == paths[1] else paths[1], draw)
        said.clear()
        before = {path: (path / "MANIFEST.json").is_file() and json_of(path / "MANIFEST.json") for path in paths}
        try:
            newest = made.latest()
        except CheckpointError as error:
            assert both and error.exit_code == 5 and "\n" not in str(error)
            ends += 1
            continue
        assert newest is not None
        intact = before[newest[0]] == json_of(newest[0] / "MANIFEST.json") and not list(lines_of(said, newest[0]))
        assert intact and all(sums(newest[0]))
        if newest[0] == paths[0]:
            assert len(list(lines_of(said, paths[1]))) == 1
    assert ends > 40 or not both


def json_of(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (ValueError, RecursionError):
        return None


def lines_of(said: list[str], path: Path) -> list[str]:
    return [line for line in said if line.startswith(f"warning: passed over {path}: ")]


def sums(folder: Path) -> list[bool]:
    """Whether each file is the one in the manifest."""
    entries = json_of(folder / "MANIFEST.json")
    return [
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"] for name, entry in entries.items()
    ]
