"""Tensors and pictures as checksums, with a few of their numbers for machines whose bits differ."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

SHOWN = 5  # numbers, evenly spaced over all elements


def of_tensors(tensors: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Of all of them in order: a checksum over dtypes, shapes and bytes, their elements' number, norm and some."""
    checksum, flat = hashlib.sha256(), []
    for tensor in tensors:
        full = tensor.detach().cpu().contiguous()
        checksum.update(f"{full.dtype} {tuple(full.shape)}\n".encode())
        checksum.update(full.flatten().view(torch.uint8).numpy().tobytes() if full.numel() else b"")
        flat.append(full.flatten().double())
    all_of_it = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)
    count = all_of_it.numel()
    where = [count * part // SHOWN for part in range(SHOWN)] if count else []
    return {
        "sha256": checksum.hexdigest()[:24],
        "elements": count,
        "norm": _short(float(all_of_it.norm())),
        "some": [_short(float(all_of_it[at])) for at in where],
    }


def of_pictures(files: Sequence[Path]) -> dict[str, Any]:
    """Of their pixels, not of their compression."""
    return of_tensors([torch.from_numpy(np.array(Image.open(file))) for file in files])


def of_weights(folder: Path) -> dict[str, Any]:
    """Every safetensors file under it by its path: the tensors in the order of their names."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): _of_file(file) for file in files}


def _of_file(file: Path) -> dict[str, Any]:
    tensors = load_file(file)
    return {"names": _names(tensors), **of_tensors([tensors[name] for name in sorted(tensors)])}


def _names(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:12]


def _short(number: float) -> float:
    return float(f"{number:.9g}")
