"""What may change bits: libraries, instructions, processor. No torch."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.recorder.processes import FIXED, ROOT, environment

ASK = """
import json
from importlib.metadata import version
import torch
packages = ("torch", "deepspeed", "diffusers", "transformers", "peft", "bitsandbytes", "numpy", "pillow")
capability = torch.backends.cpu.get_cpu_capability()
print(json.dumps({"capability": capability, "packages": {name: version(name) for name in packages}}))
"""
TOLD = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OMP_NUM_THREADS")


def describe() -> dict[str, Any]:
    """The last commit that changed memdiff, and what workers run with."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    asked = json.loads(done.stdout)
    return {
        "commit": _git("log", "-1", "--format=%h", "--abbrev=12", "--", "memdiff"),
        "clean": _git("status", "--porcelain", "--", "memdiff") == "",
        "python": platform.python_version(),
        "device": "CPU",
        "packages": asked["packages"],
        "instructions": {"torch": asked["capability"], **{name: FIXED[name] for name in TOLD}},
        "processor": processor(),
    }


def _git(*words: str) -> str | None:
    """None outside a checkout."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """Vendor, family and model: caches, by which kernels choose their blocks, go with them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = dict(reversed([line.split(":", 1) for line in lines if ":" in line][:20]))
    known = {key.strip(): value.strip() for key, value in fields.items()}
    named = [known[key] for key in ("vendor_id", "cpu family", "model") if key in known]
    return " ".join(named) or platform.processor() or platform.machine()
