"""The one reader of safetensors headers: what the library says of a file, and nothing that a stranger made up."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from memdiff.runtime.weight_headers import MOST_BYTES, read_header

BODY = bytes(64)
WHOLE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def written(path: Path, header: bytes, *, length: int | None = None, body: bytes = BODY) -> Path:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + body)
    return path


def test_it_says_what_the_library_says(tmp_path: Path) -> None:
    """Names, kinds, shapes; and the bytes between both ends are the tensor's own."""
    tensors = {
        "a.weight": torch.arange(6, dtype=torch.float16).reshape(2, 3), "b": torch.tensor(7), "none": torch.zeros(0, 4),
        "ü": torch.ones(5, dtype=torch.bfloat16),
    }  # fmt: skip
    file = tmp_path / "w.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    header, content = read_header(file), file.read_bytes()
    assert header.tensors.keys() == tensors.keys()
    with safe_open(file, framework="pt") as opened:
        for name, stored in header.tensors.items():
            part = opened.get_slice(name)
            assert (stored.numbers, list(stored.shape)) == (part.get_dtype(), part.get_shape())
            own = content[stored.start : stored.end]
            assert own == tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert header.size == min(stored.start for stored in header.tensors.values())


HEADERS = {
    "a list": b"[1]",
    "no object in it": b'{"a": 1}',
    "nothing": b'{"a": null}',
    "no offsets": b'{"a": {"dtype": "F32", "shape": [2]}}',
    "three offsets": json.dumps({"a": WHOLE | {"data_offsets": [0, 1, 2]}}).encode(),
    "beyond the end": json.dumps({"a": WHOLE | {"data_offsets": [0, 65]}}).encode(),
    "before the beginning": json.dumps({"a": WHOLE | {"data_offsets": [-1, 5]}}).encode(),
    "its end before its beginning": json.dumps({"a": WHOLE | {"data_offsets": [9, 5]}}).encode(),
    "a truth value": json.dumps({"a": WHOLE | {"shape": [True]}}).encode(),
    "a negative side": json.dumps({"a": WHOLE | {"shape": [-1, 4]}}).encode(),
    "a text for a shape": json.dumps({"a": WHOLE | {"shape": "22"}}).encode(),
    "a list for a kind": json.dumps({"a": WHOLE | {"dtype": ["F32"]}}).encode(),
    "no number": json.dumps({"a": WHOLE | {"shape": [float("nan")]}}).encode(),
    "without an end": b'{"a": {"shape": [1e999]}}',
    "thousands of digits": b'{"a": {"shape": [' + b"9" * 5000 + b"]}}",
    "brackets": b"[" * 99_999,
    "half a character": json.dumps({"\ud800": WHOLE}).encode(),
    "another encoding": json.dumps({"a": WHOLE}).encode("utf-16"),
    "a pickle": b"\x80\x04cposix\nsystem\n.",
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_without_sense_is_none(what: str, tmp_path: Path) -> None:
    """In a line, whatever exception its bytes lead to."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        read_header(written(tmp_path / "w.safetensors", HEADERS[what]))


@pytest.mark.parametrize("length", [0, 15, 2**31, 2**63, 2**64 - 1])
def test_a_length_that_is_not_the_headers(length: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        read_header(written(tmp_path / "w.safetensors", json.dumps({"a": WHOLE}).encode(), length=length))


def test_no_more_than_a_sane_size_is_read(tmp_path: Path) -> None:
    """A file of zeros that says its header is a byte too long takes no memory; one of the largest size is looked at."""
    file = written(tmp_path / "w.safetensors", b"", length=MOST_BYTES + 1, body=b"")
    os.truncate(file, 2 * MOST_BYTES)  # no block of it is on the disk
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"a header of {MOST_BYTES + 1}"):
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    padded = json.dumps({"a": WHOLE}).encode().ljust(MOST_BYTES)  # with blanks, as the format allows
    assert read_header(written(tmp_path / "x.safetensors", padded)).size == MOST_BYTES + 8


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe would be waited for."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "folder", "nowhere"):
        with pytest.raises(ValueError, match="no regular file"):
            read_header(tmp_path / f"{name}.safetensors")
