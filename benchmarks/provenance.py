"""Where a number comes from: the code, the versions, the machine. A row without it is not written. No torch needed."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from memdiff.runtime.cuda_allocator import setting_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "deepspeed", "diffusers", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "numpy")
# What measurements are made of; results and the tables made from them may differ.
MEASURED = ("memdiff", "benchmarks", ":!benchmarks/results", ":!benchmarks/*.md")


def of_tree(root: Path = ROOT) -> dict[str, Any]:
    """The commit, and whether the code that was measured is exactly it. Both None outside a checkout."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD", folder=root)
    changes = _output("git", "status", "--porcelain", "--", *MEASURED, folder=root)
    return {"commit": commit, "clean": None if changes is None else changes == ""}


def of_machine() -> dict[str, Any]:
    """When and on what; `busy` is the load average before the run: above 0.5, others were at work."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "busy": round(os.getloadavg()[0], 2),
    }


def of_process() -> dict[str, Any]:
    """The interpreter that measured: versions, threads, device and its allocator's setting."""
    facts: dict[str, Any] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is None:
        return facts
    facts["torch"] = torch.__version__  # with what it was built for, which a package's own version may leave out
    facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        facts["allocator"] = setting_of() or "torch's default"
        facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    else:
        facts["device"] = "CPU"
    return facts


def cpu_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _output(*words: str, folder: Path = ROOT) -> str | None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
