"""Weight files that are not what their name says."""

import io
import json
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from tests.fuzz.hostile import Outside, Trap
from tests.fuzz.json_mutants import changed_json


def changed_safetensors(content: bytes, random: Random, outside: Outside) -> tuple[str, bytes]:
    """The header, or a tensor, or which tensors there are."""
    size = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + size], content[8 + size :]
    kind = random.choice(("header", "header", "length", "tensor", "tensor", "entry", "metadata"))
    if kind == "header":
        what, changed = changed_json(header, random, outside)
        return f"header, {what}", len(changed).to_bytes(8, "little") + changed + body
    if kind == "length":
        length = random.choice((0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1))
        return f"a header of {length} bytes", length.to_bytes(8, "little") + content[8:]
    if kind == "entry":
        entries = json.loads(header)
        name = random.choice([key for key in entries if key != "__metadata__"])
        field, value = random.choice(
            (
                ("shape", [2**40, 2**40]), ("shape", [-1]), ("shape", []), ("shape", [0]), ("dtype", "F8_E4M3"),
                ("dtype", "BOOL"), ("dtype", "X"), ("data_offsets", [0, 2**62]), ("data_offsets", [10, 0]),
                ("data_offsets", [-1, 5]), ("data_offsets", None),
            )
        )  # fmt: skip
        entries[name][field] = value
        changed = json.dumps(entries).encode()
        return f"{name}.{field} is {value}", len(changed).to_bytes(8, "little") + changed + body
    tensors = load(content)
    if kind == "metadata":
        text = random.choice(("\x1b[31m", "x" * 5000, "{", "[1]", '{"r": "x"}', "NaN", "-1", "1e999"))
        keys = ("memdiff", "lora_adapter_metadata", "format", "ss_network_alpha", "alpha", "modelspec.title")
        return f"metadata {text[:9]!r}", save(tensors, dict.fromkeys(keys, text))
    what, tensors = _changed_tensors(tensors, random)
    return what, save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _changed_tensors(tensors: dict[str, Any], random: Random) -> tuple[str, dict[str, Any]]:
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    ways: dict[str, Any] = {
        "nan": torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor,
        "integers": torch.zeros(tensor.shape, dtype=torch.int64),
        "truth values": torch.zeros(tensor.shape, dtype=torch.bool),
        "a scalar": torch.tensor(1.0),
        "empty": torch.zeros(0),
        "of no rank": torch.zeros(0, *tensor.shape[1:]),
        "transposed": tensor.t() if tensor.ndim == 2 else tensor.flatten(),
        "float64": tensor.double(),
        "float8": tensor.float().to(torch.float8_e4m3fn),
        "complex": tensor.to(torch.complex64),
        "six dimensions": tensor.reshape(1, 1, 1, 1, 1, -1),
    }
    way = random.choice([*sorted(ways), "absent", "renamed", "alone", "none"])
    if way == "absent":
        return f"without {name}", {key: value for key, value in tensors.items() if key != name}
    if way == "renamed":
        new = random.choice(("x", "../x", "\x1b[31m", "x" * 5000, name + ".lora_A.weight", name.replace(".", "_"), ""))
        return f"{name} is called {new[:20]!r}", {new if key == name else key: value for key, value in tensors.items()}
    if way == "alone":
        return f"{name} alone", {name: tensor}
    if way == "none":
        return "no tensors", {}
    return f"{name} is {way}", tensors | {name: ways[way]}


def _unlike_tensors() -> dict[str, Any]:
    """Tensors of a pickle that hold other things than so many numbers."""
    return {
        "empty": torch.zeros(0), "one number, repeated": torch.zeros(()).expand(2**21, 2**21),
        "without numbers": torch.zeros(2**21, 2**21, device="meta"), "sparse": torch.eye(2).to_sparse(),
        "a parameter": torch.nn.Parameter(torch.zeros(2)),
    }  # fmt: skip


def changed_torch(content: bytes, random: Random, outside: Outside) -> tuple[str, bytes]:
    """What torch.save writes: other things than were there, some of them traps."""
    try:
        stored = torch.load(io.BytesIO(content), weights_only=False)  # this program's own
    except Exception:
        stored = {"weight": torch.zeros(2)}
    ways: dict[str, Any] = {
        "a list": [1, 2], "nothing": None, "a text": "x" * 5000, "a tensor": torch.zeros(3), "an empty mapping": {},
        "a mapping of numbers": {1: torch.zeros(2)}, "of texts": {"weight": "x"}, "of nothing": {"state_dict": None},
        "a trap": Trap(outside.mark), "a trap within": {"state_dict": {"weight": Trap(outside.mark)}},
        "a trap beside it": [stored, Trap(outside.mark)], "a module": torch.nn.Linear(2, 2),
        "the same within": {"state_dict": stored}, "nan": torch.full((2, 2), torch.nan),
    }  # fmt: skip
    if isinstance(stored, dict) and stored:
        name = random.choice(sorted(map(str, stored)))
        ways |= {
            f"without {name}": {key: value for key, value in stored.items() if str(key) != name},
            f"{name} is a list": {key: [1] if str(key) == name else value for key, value in stored.items()},
            f"{name} is a trap": {
                key: Trap(outside.mark) if str(key) == name else value for key, value in stored.items()
            },
            **{
                f"{name} is {what}": {key: other if str(key) == name else value for key, value in stored.items()}
                for what, other in _unlike_tensors().items()
            },
        }
    way = random.choice(sorted(ways))
    stream = io.BytesIO()
    torch.save(ways[way], stream, _use_new_zipfile_serialization=random.random() < 0.7)
    return way, stream.getvalue()
