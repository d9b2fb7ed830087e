"""Names of strangers lead nowhere: in manifests, in prompts, in a run folder's own words."""

import hashlib
import json
from pathlib import Path

import pytest

from memdiff import cli
from memdiff.engine import manifest
from memdiff.training.run_folder import RunFolder
from tests.fuzz.hostile import SECRET, Outside, names

FEWEST = 50


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    """What lies beside a run, and is nobody's to read."""
    folder = Outside(tmp_path / "outside")
    folder.make()
    return folder


def test_a_manifest_names_nothing_elsewhere(outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name with the size and the sum of the file that it could lead to: a checkpoint that is none, and no byte of
    what lies outside is read to find that out."""
    folder = tmp_path / "run/checkpoints/round_000001"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"round": 1}')
    (folder / "link").symlink_to(outside.folder)
    read: list[Path] = []
    monkeypatch.setattr(manifest, "_sha256", lambda path: read.append(path.resolve()) or "none")
    plain = names(outside)
    leading = [*plain, *(f"engine/{name}" for name in plain), *(f"./{name}" for name in plain), "link/secret.txt"]
    assert len(leading) > FEWEST
    entry = {"bytes": len(SECRET), "sha256": hashlib.sha256(SECRET.encode()).hexdigest()}
    for name in leading:
        (folder / "MANIFEST.json").write_text(json.dumps({name: entry}))
        assert manifest.defect_of(folder) is not None, name
    assert all(path.is_relative_to(folder) for path in read)


def test_no_prompt_is_a_files_name(outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled images are numbered, whatever they were asked for, and no other file comes about."""
    texts = [name for name in names(outside) if name.strip() and not {"\x00", "\ud800"} & set(name)]
    texts += [f"../{number}" for number in range(FEWEST - len(texts))]
    (tmp_path / "p.json").write_text(json.dumps(texts))
    monkeypatch.chdir(tmp_path)
    words = ["--prompts", "p.json", "--num-images", str(len(texts)), "--steps", "1", "--out", "out/deep/s"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["sample", "digits_text", *words])
    assert ended.value.code == 0
    images = [f"image_{number:06d}.png" for number in range(len(texts))]
    assert sorted(file.name for file in (tmp_path / "out/deep/s").iterdir()) == ["grid.png", *images, "settings.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "outside", "p.json"]
    assert [file.name for file in outside.folder.iterdir()] == ["secret.txt"]


def test_words_of_a_run_are_no_paths(outside: Outside, tmp_path: Path) -> None:
    """Of a grid, a status, an event: what they hold is written down, and nothing else comes about."""
    run = RunFolder(tmp_path / "run")
    run.samples.mkdir(parents=True)
    for name in names(outside):
        run.write_tiles(3, {"prompts": [name]})
        run.add_event("stopped", 3, name)
        run.write_status("failed", round_number=3, message=name)
    written = sorted(str(file.relative_to(tmp_path)) for file in run.path.rglob("*") if file.is_file())
    assert written == ["run/events.jsonl", "run/samples/round_000003.json", "run/status.json"]
    assert outside.secret.read_text() == SECRET
