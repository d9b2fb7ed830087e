"""What a run ran on: versions, devices, commit. Written into status.json and beside every measured number."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from memdiff import __version__
from memdiff.memory.knobs import Knobs
from memdiff.runtime.cuda_allocator import setting_of
from memdiff.runtime.ranks import Ranks

PACKAGES = ("torch", "deepspeed", "diffusers", "transformers", "peft", "bitsandbytes")


def versions() -> dict[str, str | None]:
    """Of memdiff with its commit, of Python and of the packages that decide most."""
    return {
        "memdiff": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def describe(ranks: Ranks, knobs: Knobs) -> dict[str, Any]:
    """Versions, device, its allocator's setting, world size, threads, commit and the knobs that were chosen."""
    on_gpu = ranks.device.type == "cuda"
    return {
        **versions(),
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else f"CPU {platform.machine()}",
        "allocator": setting_of() or "torch's default",
        "world_size": ranks.world_size,
        "threads": torch.get_num_threads(),
        "knobs": knobs.model_dump(),
    }


def commit() -> str | None:
    """The checkout's commit, `-dirty` after it where tracked files differ; None where memdiff was installed."""
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
