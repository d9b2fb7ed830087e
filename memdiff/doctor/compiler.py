"""The compiler, and the operators that DeepSpeed builds with it at the first start."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from memdiff.doctor.devices import DeviceFacts
from memdiff.doctor.table import Finding, first_line
from memdiff.engine.build_lock import LOCK, holders, is_stale

SECONDS_COMPILE = 8.0
OPS_CPU = ("deepspeed_shm_comm", "cpu_adam")
LEFT_LOCKED = "left locked"
OPS_GPU = ("cpu_adam",)  # ranks on GPUs talk through NCCL
NOT_DONE = "not done within"


@dataclass(frozen=True)
class CompilerFacts:
    """Paths (empty: not found) and the first line of the compiler's error (empty: the test file compiled)."""

    compiler: str
    ninja: str
    ninja_beside_python: bool
    python_header: bool
    error: str


def probe_compiler() -> CompilerFacts:
    """Find compiler and ninja, and build a one-line extension with both Python's header and the linker."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or ""
    header = Path(sysconfig.get_paths()["include"])
    error = "no compiler"
    if compiler:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.cpp"
            source.write_text("#include <Python.h>\nint memdiff_probe() { return Py_IsInitialized(); }\n")
            command = [
                compiler,
                "-std=c++17",
                "-shared",
                "-fPIC",
                f"-I{header}",
                str(source),
                "-o",
                f"{folder}/probe.so",
            ]
            error = _run_error(command, SECONDS_COMPILE)
    beside = (Path(sys.executable).parent / "ninja").exists()
    return CompilerFacts(compiler, shutil.which("ninja") or "", beside, (header / "Python.h").exists(), error)


def judge_compiler(facts: CompilerFacts) -> Finding:
    """DeepSpeed builds its operators at the first start: that takes g++, ninja and Python.h."""
    if not facts.compiler:
        return Finding("compiler", "fail", "no C++ compiler", "apt-get install g++ (or point CXX at one).")
    if not facts.python_header:
        advice = "apt-get install python3-dev (of this Python's version)."
        return Finding("compiler", "fail", f"{facts.compiler}, but no Python.h", advice)
    if facts.error.startswith(NOT_DONE):
        advice = "The machine is busy, or the compiler hangs: the first start, which builds an operator, will tell."
        return Finding("compiler", "warn", f"{facts.compiler}: a test extension was {facts.error}", advice)
    if facts.error:
        advice = "Repair the compiler, or point CXX at one that works."
        return Finding("compiler", "fail", f"{facts.compiler} can't build an extension: {facts.error}", advice)
    if not facts.ninja:
        if facts.ninja_beside_python:
            advice = "Activate the virtual environment, so that its bin folder is on PATH."
            return Finding("compiler", "warn", f"{facts.compiler}; ninja is beside Python but not on PATH", advice)
        return Finding("compiler", "fail", f"{facts.compiler}, but no ninja", "pip install ninja")
    return Finding("compiler", "ok", f"{facts.compiler}, {facts.ninja}, Python.h: a test extension was built")


def probe_operators(extensions: str, names: tuple[str, ...] = OPS_CPU) -> dict[str, str]:
    """State of each DeepSpeed operator in torch's extension folder: built, missing, being built, or `left locked`."""
    states = {}
    for name in names:
        folder = Path(extensions) / name
        if is_stale(folder):
            states[name] = LEFT_LOCKED
        elif (folder / LOCK).exists():
            states[name] = f"being built by process {', '.join(map(str, holders(folder))) or 'unknown'}"
        else:
            states[name] = "built" if (folder / f"{name}.so").is_file() else "missing"
    return states


def judge_operators(facts: DeviceFacts, states: dict[str, str]) -> Finding:
    """Whether the first start has to build, waits for a build, or finds a lock that nobody holds."""
    if facts.problem:
        return Finding("operators", "warn", "unknown", "See devices.")
    detail = f"{', '.join(f'{name} {state}' for name, state in states.items())} in {facts.extensions}"
    left = [str(Path(facts.extensions) / name / LOCK) for name, state in states.items() if state == LEFT_LOCKED]
    if left:
        advice = (
            f"A build was stopped. memdiff clears it at its next start; others wait for ever for: rm {' '.join(left)}"
        )
        return Finding("operators", "warn", detail, advice)
    if "missing" in states.values():
        advice = "The first start that needs one builds it, about a minute each; keep TORCH_EXTENSIONS_DIR."
        return Finding("operators", "ok", detail, advice)
    return Finding("operators", "ok", detail)


def _run_error(command: list[str], seconds: float) -> str:
    """Run a command; empty if it succeeds, else one line of why not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"{NOT_DONE} {seconds:.0f} s"
    except OSError as error:
        return str(error.strerror)
    return "" if done.returncode == 0 else first_line(done.stderr) or f"code {done.returncode}"
