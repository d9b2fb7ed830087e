"""Weight files: read without running anything in them, converted once, assigned strictly, found or told how to get."""

import builtins
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from memdiff.errors import ConfigError
from memdiff.models.lora.files import _load_pickle
from memdiff.models.single_file import read_tensors
from memdiff.rewards import weights
from memdiff.rewards.weights import default_cache, find_weights, load_weights, sha256
from memdiff.runtime.state_dicts import assign_strictly


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3).half(), "steps": torch.tensor([7])}


def same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> bool:
    return got.keys() == want.keys() and all(
        got[name].dtype == want[name].dtype and torch.equal(got[name], want[name]) for name in want
    )


class Payload:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_pickled_tensors_are_converted_once_and_come_back_the_same(tmp_path, monkeypatch, suffix, wrapper):
    """Bit for bit with their dtypes; the second time the pickle is not opened as one; the digest is in the metadata."""
    source, cache = tmp_path / f"w{suffix}", tmp_path / "cache"
    torch.save(tensors() if wrapper is None else {wrapper: tensors(), "step": 3}, source)
    assert same(load_weights(source, cache=cache), tensors())
    (converted,) = (cache / "weights").iterdir()
    with safe_open(converted, framework="pt") as file:
        assert file.metadata() == {"source": source.name, "source_sha256": sha256(source)}
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the pickle was opened again"))
    assert same(load_weights(source, cache=cache), tensors())


def test_a_changed_source_is_converted_anew(tmp_path):
    """Same path, other bytes: the new tensors, never the cached ones."""
    source = tmp_path / "w.pt"
    for value in (1.0, 2.0):
        torch.save({"x": torch.full((5,), value)}, source)
        assert load_weights(source, cache=tmp_path / "cache")["x"].eq(value).all()
    assert len(list((tmp_path / "cache" / "weights").iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "another_digest"])
def test_a_damaged_conversion_is_made_again(tmp_path, damage):
    """A cache file that is cut short, empty, or of another source is not believed."""
    source = tmp_path / "w.pt"
    torch.save(tensors(), source)
    load_weights(source, cache=tmp_path)
    (converted,) = (tmp_path / "weights").iterdir()
    match damage:
        case "truncated":
            converted.write_bytes(converted.read_bytes()[:-1])
        case "empty":
            converted.write_bytes(b"")
        case "another_digest":
            save_file({"x": torch.zeros(1)}, converted, metadata={"source_sha256": "0" * 64})
    assert same(load_weights(source, cache=tmp_path), tensors())
    assert same(load_file(converted), tensors())


def test_shared_and_transposed_tensors_survive_the_conversion(tmp_path):
    """The format stores no views: what shares memory in the pickle is stored one by one, with the same values."""
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"whole": base, "tied": base, "row": base[1], "turned": base.t()}, tmp_path / "w.pt")
    got = load_weights(tmp_path / "w.pt", cache=tmp_path)
    assert same(got, {"whole": base, "tied": base, "row": base[1], "turned": base.t().contiguous()})


def test_a_cache_that_cannot_be_written_costs_a_warning_not_the_weights(tmp_path, caplog):
    """The cache's place is taken by a file: tensors come all the same, one warning says why nothing was kept."""
    (tmp_path / "cache").write_text("in the way")
    torch.save(tensors(), tmp_path / "w.pt")
    assert same(load_weights(tmp_path / "w.pt", cache=tmp_path / "cache"), tensors())
    assert "read anew each time" in caplog.text


def test_the_default_cache_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "memdiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "memdiff"


def hostile_contents(marker: Path):
    """Pickles that would create `marker` when they are unpickled without restraint."""
    touch = f"open({str(marker)!r}, 'w').close()"
    for call in (
        Payload(os.system, f"touch {marker}"),
        Payload(builtins.eval, touch),
        Payload(builtins.exec, touch),
        Payload(os.mkdir, str(marker)),
        Payload(builtins.open, str(marker), "w"),
        Payload(Path.touch, marker),
    ):
        yield call
        yield {"a.weight": torch.zeros(2), "a.bias": call}
        yield {"state_dict": {"a.weight": call}}


@pytest.mark.parametrize("number", range(18))
@pytest.mark.parametrize("how", ["torch", "legacy", "plain_pickle"])
def test_hostile_pickles_run_nothing(tmp_path, number, how):
    """18 payloads x 3 container formats: one line, ConfigError, nothing executed, nothing left in the cache."""
    marker, source = tmp_path / "executed", tmp_path / "w.pt"
    content = list(hostile_contents(marker))[number]
    if how == "plain_pickle":
        source.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ConfigError) as caught:
        load_weights(source, cache=tmp_path / "cache")
    assert not marker.exists() and not (tmp_path / "cache").exists()
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # one payload opens a file
def test_the_payloads_would_run_without_the_restraint(tmp_path):
    """The control: each of them executes under plain unpickling, so the test above tests something."""
    for number in range(18):
        marker = tmp_path / f"executed_{number}"
        stored = pickle.dumps(list(hostile_contents(marker))[number])
        assert not marker.exists()
        pickle.loads(stored)
        assert marker.exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_cut_and_altered_files_are_refused_in_one_line(tmp_path, suffix):
    """Cut at 40 places: never tensors, always ConfigError naming the file. Garbage, a zip of garbage, a folder too."""
    whole = tmp_path / f"whole{suffix}"
    torch.save(tensors(), whole) if suffix == ".pt" else save_file(tensors(), whole)
    stored = whole.read_bytes()
    source = tmp_path / f"cut{suffix}"
    with zipfile.ZipFile(tmp_path / "garbage.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02garbage")
    cut = [stored[: len(stored) * part // 40] for part in range(40)]
    for content in (*cut, b"garbage" * 100, (tmp_path / "garbage.zip").read_bytes(), pickle.dumps([1, 2])):
        source.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            load_weights(source, cache=tmp_path / "cache")
        assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_pickle_under_the_name_of_safetensors_is_not_unpickled(tmp_path):
    marker, source = tmp_path / "executed", tmp_path / "w.safetensors"
    torch.save(Payload(os.mkdir, str(marker)), source)
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        load_weights(source)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "got list"),
        ({}, "got dict"),
        (torch.zeros(3), "got Tensor"),
        ({"a": torch.zeros(1), "lr": 0.1}, "got float under 'lr'"),
        ({3: torch.zeros(1)}, "under 3"),
        ({"a": torch.eye(2).to_sparse()}, "dense tensors"),
    ],
)
def test_anything_but_named_dense_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=message):
        load_weights(tmp_path / "w.pt", cache=tmp_path)


def repeated(value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Views of one number each, 32 TiB of them; and one without any numbers."""
    return {"unet.x.lora.up.weight": value.expand(2**21, 2**21), "b": torch.zeros(2**21, 2**21, device="meta")}


@pytest.mark.parametrize("read", [load_weights, read_tensors, _load_pickle], ids=lambda read: read.__name__)
def test_a_small_file_does_not_fill_the_memory(tmp_path, read):
    """A pickled tensor may repeat a number as often as it says: refused before it is copied, by whoever reads it."""
    torch.save(repeated(torch.zeros(())), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").stat().st_size < 10_000
    with pytest.raises(ConfigError, match="its tensors would take 35184372088832;"):
        read(tmp_path / "w.bin")
    shared = torch.rand(1000)
    torch.save({"a": shared, "b": shared.view(10, 100), "c": shared[::2]}, tmp_path / "w.bin")
    assert set(read(tmp_path / "w.bin")) == {"a", "b", "c"}


@pytest.mark.parametrize("name", ["w.ckpt", "w", "w.pkl", "w.onnx"])
def test_other_kinds_of_files_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"must be \.safetensors or one of \.pt, \.pth, \.bin"):
        load_weights(tmp_path / name)


def test_strict_assignment_takes_the_tensors_without_a_copy_and_keeps_requires_grad():
    """A module on the meta device becomes real; its parameters are the very memory that was given."""
    with torch.device("meta"):
        module = torch.nn.Linear(4, 3).requires_grad_(False)
    state = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
    assign_strictly(module, state, "w.pt")
    assert module.weight.data_ptr() == state["weight"].data_ptr()
    assert not module.weight.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, "1 missing: weight"),
        ({"extra": torch.zeros(1), "more": torch.zeros(1)}, "2 unexpected: extra, more"),
        ({"weight": torch.zeros(4, 3)}, r"1 of another shape or kind: weight is \(4, 3\), should be \(3, 4\)"),
        (
            {"bias": torch.zeros(3, dtype=torch.int8)},
            r"1 of another shape or kind: bias is torch.int8, should be torch.float32",
        ),
        ({f"x{n}": torch.zeros(1) for n in range(9)}, "9 unexpected: x0, x1, x2, ..."),
    ],
)
def test_another_architecture_is_told_in_one_line_and_changes_nothing(change, message):
    module = torch.nn.Linear(4, 3)
    before = module.weight.clone()
    state = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3), **change}
    with pytest.raises(ConfigError, match=f"^w.pt does not hold the weights of Linear: {message}"):
        assign_strictly(module, {name: tensor for name, tensor in state.items() if tensor is not None}, "w.pt")
    assert torch.equal(module.weight, before)


def test_a_file_and_a_folder_are_found(tmp_path):
    """The file under any name, and in a folder the one asked for."""
    (tmp_path / "other.pt").write_bytes(b"x")
    (tmp_path / "w.pt").write_bytes(b"x")
    assert find_weights(str(tmp_path / "other.pt"), "w.pt") == tmp_path / "other.pt"
    assert find_weights(str(tmp_path), "w.pt") == tmp_path / "w.pt"
    with pytest.raises(ConfigError, match=r"missing\.pt is needed in the folder"):
        find_weights(str(tmp_path), "missing.pt")


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "~/nowhere-at-all", "a/b/c", "../x/y"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(source, monkeypatch):
    monkeypatch.setattr(weights, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_weights(source, "w.pt")


def test_a_file_in_the_hubs_cache_is_taken_without_the_network(tmp_path, monkeypatch):
    """The cache's own layout, by branch and by commit; nothing is downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "w.pt").write_bytes(b"x")
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    assert find_weights("owner/name", "w.pt") == snapshot / "w.pt"
    assert find_weights("owner/name", "w.pt", commit) == snapshot / "w.pt"


@pytest.mark.parametrize("revision", [None, "v1"])
def test_offline_a_missing_model_names_id_folder_and_command(tmp_path, monkeypatch, revision):
    """One line: what is missing, where it was looked for, and the command that fetches it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        find_weights("owner/name", "w.pt", revision)
    text = str(caught.value)
    command = "hf download owner/name w.pt" + (" --revision v1" if revision else "")
    assert f"w.pt of owner/name is not in {tmp_path}" in text and text.endswith(command) and "\n" not in text


@pytest.mark.parametrize(
    "source", ["not an id", "a--b", "owner/na\x00me", "x" * 5000, "name.git", "-x", "~nobody-of-that-name"]
)
def test_what_cannot_be_a_hub_id_is_refused(source):
    with pytest.raises(ConfigError) as caught:
        find_weights(source, "w.pt")
    assert len(str(caught.value)) < 300
