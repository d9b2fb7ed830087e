"""`memdiff doctor`: what this machine has, what memdiff needs, and what to do about the difference.

Each check is a probe that only looks (`probe_* -> facts`) and a judge that only thinks (`judge_* -> Finding`). A child
process with a time limit asks torch and DeepSpeed, since a broken driver can abort or hang whoever imports them.
"""

import http.client
import importlib.metadata
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

State = Literal["ok", "warn", "fail"]
GIB = 2**30
SECONDS_DEVICES = 15.0  # for the child that imports torch and DeepSpeed; imports take 4 to 12 s
SECONDS_COMPILE = 8.0
SECONDS_HUB = 3.0
LEAST_DISK_BYTES = 5 * GIB
LEAST_SHM_BYTES = 1 * GIB
LEAST_MEMORY_BYTES = 6 * GIB
LEAST_OPEN_FILES = 1024
OPS_CPU = ("deepspeed_shm_comm", "cpu_adam")
OPS_GPU = ("cpu_adam",)  # ranks on GPUs talk through NCCL
BRING_TORCH = "Reinstall: pip install -e . -c constraints.txt"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class PackageFacts:
    """Declared requirements (None: memdiff has no metadata) and installed versions by lower-case name."""

    python: str
    requires_python: str
    requirements: list[str] | None
    versions: dict[str, str]
    torchvision_needs: str = ""  # torchvision's own requirement on torch


@dataclass(frozen=True)
class Device:
    """One CUDA device."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class DeviceFacts:
    """What torch and DeepSpeed say; `problem` is why they could not be asked."""

    problem: str = ""
    devices: list[Device] = field(default_factory=list)
    torch_cuda: str | None = None  # the CUDA version torch was built for; None: a CPU build
    nccl: bool = False
    peers_missing: int = 0  # ordered pairs of devices without peer access
    accelerator: str = ""
    accelerator_fp16: bool = False
    accelerator_bf16: bool = False
    extensions: str = ""  # the folder where torch builds its extensions


@dataclass(frozen=True)
class CompilerFacts:
    """Paths (empty: not found) and the first line of the compiler's error (empty: the test file compiled)."""

    compiler: str
    ninja: str
    ninja_beside_python: bool
    python_header: bool
    error: str


@dataclass(frozen=True)
class HubFacts:
    """`problem` is empty where the endpoint answered."""

    endpoint: str
    offline: bool
    cache: str
    cache_free_bytes: int
    problem: str


@dataclass(frozen=True)
class HostFacts:
    """Disk, shared memory, limits and processors of this machine."""

    folder: str
    disk_free_bytes: int
    shm_bytes: int | None
    open_files: int
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    threads: str  # OMP_NUM_THREADS, empty where unset


def examine() -> list[Finding]:
    """All findings, in the order of the table; takes less than 20 s and never raises."""
    child = _start_device_probe()
    findings = _guard("packages", lambda: judge_packages(probe_packages()))
    findings += _guard("compiler", lambda: [judge_compiler(probe_compiler())])
    findings += _guard("hub", lambda: [judge_hub(probe_hub())])
    findings += _guard("host", lambda: judge_host(probe_host()))
    devices = _collect_device_probe(child)
    findings += _guard(
        "devices",
        lambda: [
            judge_devices(devices),
            judge_precision(devices),
            judge_operators(devices, probe_operators(devices.extensions, OPS_GPU if devices.devices else OPS_CPU)),
            judge_links(devices),
        ],
    )
    return findings


def show(findings: list[Finding], console: Console | None = None) -> int:
    """Print the findings as a table; 0 where nothing fails, else 2."""
    table = Table(title="memdiff doctor", title_justify="left", expand=False)
    for heading in ("check", "state", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for finding in findings:
        table.add_row(
            Text(finding.name), Text(finding.state, colours[finding.state]), Text(finding.found), Text(finding.advice)
        )
    (console or Console()).print(table)
    return 2 if any(finding.state == "fail" for finding in findings) else 0


def _guard(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:  # a doctor must survive any patient; the type and text are the finding
        found = f"the check itself failed: {type(error).__name__}: {_first_line(str(error))}"
        return [Finding(name, "warn", found, "Report this as a bug of memdiff.")]


# Packages


def probe_packages() -> PackageFacts:
    """Read the metadata of memdiff and of all installed packages."""
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            versions[_canonical(name)] = distribution.version
    try:
        requirements = importlib.metadata.requires("memdiff")
        requires_python = importlib.metadata.metadata("memdiff")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        requirements, requires_python = None, ""
    needs = importlib.metadata.requires("torchvision") or [] if "torchvision" in versions else []
    torchvision_needs = next((need for need in needs if re.match(r"torch\b(?!-)", need)), "")
    python = ".".join(str(part) for part in sys.version_info[:3])
    return PackageFacts(python, requires_python, requirements, versions, torchvision_needs)


def judge_packages(facts: PackageFacts) -> list[Finding]:
    """Python, every declared package against its bounds, and torchvision against torch."""
    findings = [_judge_python(facts)]
    if facts.requirements is None:
        advice = "Install it, so that versions can be checked: pip install -e . -c constraints.txt"
        findings.append(Finding("packages", "warn", "memdiff is not installed; bounds unknown", advice))
    else:
        findings.append(_judge_bounds(facts.requirements, facts.versions))
    if "torchvision" in facts.versions:
        findings.append(_judge_torchvision(facts))
    return findings


def _judge_python(facts: PackageFacts) -> Finding:
    from packaging.specifiers import SpecifierSet

    if facts.requires_python and facts.python not in SpecifierSet(facts.requires_python):
        return Finding("python", "fail", facts.python, f"Use Python {facts.requires_python}.")
    return Finding("python", "ok", f"{facts.python} at {sys.executable}")


def _judge_bounds(requirements: list[str], versions: dict[str, str]) -> Finding:
    from packaging.requirements import Requirement

    wrong, install, right = [], [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = versions.get(_canonical(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is outside {requirement.specifier}")
        else:
            right.append(f"{requirement.name} {version}")
            continue
        install.append(f'"{requirement.name}{requirement.specifier}"')
    if wrong:
        return Finding("packages", "fail", "; ".join(wrong), f"pip install {' '.join(install)}")
    return Finding("packages", "ok", ", ".join(right))


def _judge_torchvision(facts: PackageFacts) -> Finding:
    """A torchvision for another torch, or for another build of it, breaks imports of transformers and diffusers."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    torch, vision = Version(facts.versions.get("torch", "0")), Version(facts.versions["torchvision"])
    reason = ""
    if facts.torchvision_needs and torch.public not in Requirement(facts.torchvision_needs).specifier:
        reason = f"it needs {facts.torchvision_needs}, torch is {torch}"
    elif torch.local and vision.local and torch.local != vision.local:
        reason = f"it is built for {vision.local}, torch for {torch.local}"
    if reason:
        advice = "memdiff does not use it and it breaks imports: pip uninstall torchvision"
        return Finding("torchvision", "fail", f"{vision}: {reason}", advice)
    return Finding("torchvision", "ok", f"{vision} matches torch {torch}")


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# Devices: asked in a child process, `python -m memdiff.doctor`


def _probe_devices_here() -> DeviceFacts:
    try:
        import torch
        from deepspeed.accelerator import get_accelerator
        from torch.utils import cpp_extension

        accelerator = get_accelerator()
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        return DeviceFacts(problem=f"{type(error).__name__}: {_first_line(str(error))}")
    if accelerator is None:
        return DeviceFacts(problem="DeepSpeed found no accelerator")
    indices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    seen = [torch.cuda.get_device_properties(index) for index in indices]
    pairs = [(one, other) for one in indices for other in indices if one != other]
    build = f"py{sys.version_info.major}{sys.version_info.minor}_"
    build += f"cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "cpu"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or str(Path(cpp_extension.get_default_build_root()) / build)
    return DeviceFacts(
        devices=[Device(one.name, one.total_memory, (one.major, one.minor)) for one in seen],
        torch_cuda=torch.version.cuda,
        nccl=torch.distributed.is_available() and torch.distributed.is_nccl_available(),
        peers_missing=sum(not torch.cuda.can_device_access_peer(one, other) for one, other in pairs),
        accelerator=accelerator.device_name(),
        accelerator_fp16=bool(accelerator.is_fp16_supported()),
        accelerator_bf16=bool(accelerator.is_bf16_supported()),
        extensions=root,
    )


def probe_devices() -> DeviceFacts:
    """Ask torch and DeepSpeed in a child process, for at most 15 s."""
    return _collect_device_probe(_start_device_probe())


def _start_device_probe() -> subprocess.Popen[str] | OSError:
    package_parent = str(Path(__file__).resolve().parent.parent)
    search = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "memdiff.doctor"],
            env={**os.environ, "PYTHONPATH": search},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        return error


def _collect_device_probe(child: subprocess.Popen[str] | OSError) -> DeviceFacts:
    if isinstance(child, OSError):
        return DeviceFacts(problem=f"can't start {sys.executable}: {child.strerror}")
    try:
        output, errors = child.communicate(timeout=SECONDS_DEVICES)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return DeviceFacts(problem=f"torch and DeepSpeed did not load within {SECONDS_DEVICES:.0f} s")
    lines = output.strip().splitlines()
    if child.returncode != 0 or not lines:
        last = (errors.strip().splitlines() or ["no output"])[-1]
        return DeviceFacts(problem=f"loading torch and DeepSpeed ended with code {child.returncode}: {last[:200]}")
    facts: dict[str, Any] = json.loads(lines[-1])
    devices = [Device(one["name"], one["memory_bytes"], tuple(one["capability"])) for one in facts.pop("devices")]
    return DeviceFacts(devices=devices, **facts)


def judge_devices(facts: DeviceFacts) -> Finding:
    """Which devices there are, and whether they are alike."""
    if facts.problem:
        advice = f"{BRING_TORCH}; a hang points at the GPU driver (nvidia-smi)."
        return Finding("devices", "fail", facts.problem, advice)
    if not facts.devices:
        if facts.torch_cuda is None:
            advice = "Fine for the embedded models. For a GPU, install a CUDA build of torch."
        else:
            advice = f"torch is built for CUDA {facts.torch_cuda} but sees no device: check nvidia-smi and the driver."
        return Finding("devices", "warn", "no GPU, CPU only", advice)
    texts = [
        f"{one.name}, {one.memory_bytes / GIB:.1f} GiB, sm_{one.capability[0]}{one.capability[1]}"
        for one in facts.devices
    ]
    found = "; ".join(f"{texts.count(text)} x {text}" for text in dict.fromkeys(texts))
    if len({(one.name, one.memory_bytes, one.capability) for one in facts.devices}) > 1:
        advice = "The slowest and the smallest set the pace: choose equal ones with CUDA_VISIBLE_DEVICES."
        return Finding("devices", "warn", found, advice)
    if facts.devices[0].capability < (7, 0):
        return Finding("devices", "warn", found, "Older than sm_70: no tensor cores, so fp16 saves memory, not time.")
    return Finding("devices", "ok", found)


def judge_precision(facts: DeviceFacts) -> Finding:
    """Which of fp16, bf16 and fp32 can be trained in, by the devices and by DeepSpeed's accelerator."""
    if facts.problem:
        return Finding("precision", "warn", "unknown", "See devices.")
    says = [word for word, yes in (("fp16", facts.accelerator_fp16), ("bf16", facts.accelerator_bf16)) if yes]
    found = f"DeepSpeed's accelerator ({facts.accelerator}): {', '.join([*says, 'fp32'])}"
    if not facts.devices:
        if facts.accelerator_fp16:
            return Finding("precision", "ok", found)
        return Finding("precision", "ok", found, "fp16 is not supported on this CPU: precision auto takes fp32.")
    if facts.accelerator != "cuda":
        advice = "There are GPUs, but DeepSpeed would not use them: unset DS_ACCELERATOR or set it to cuda."
        return Finding("precision", "fail", found, advice)
    weakest = min(one.capability for one in facts.devices)
    name = f"sm_{weakest[0]}{weakest[1]}"
    if not facts.accelerator_fp16:
        return Finding("precision", "warn", f"{found}; {name}", "No fp16 here: set model.precision to fp32.")
    if weakest < (8, 0):
        advice = "fp16 only: no native bf16, no flash-attention 2. precision auto takes fp16."
        return Finding("precision", "ok", f"{found}; {name} computes in fp16 and fp32", advice)
    return Finding("precision", "ok", f"{found}; {name} computes in fp16, bf16 and fp32")


def judge_links(facts: DeviceFacts) -> Finding:
    """Whether several GPUs can talk to each other."""
    count = len(facts.devices)
    if count < 2:
        return Finding("links", "ok", "not needed: fewer than two GPUs")
    if not facts.nccl:
        return Finding("links", "fail", f"{count} GPUs, torch without NCCL", "Install torch's Linux CUDA build.")
    if facts.peers_missing:
        found = f"NCCL; {facts.peers_missing} of {count * (count - 1)} pairs without peer access"
        return Finding("links", "ok", found, "Usual for T4: traffic goes through host memory. Needs a large /dev/shm.")
    return Finding("links", "ok", f"NCCL; peer access between all {count} GPUs")


# Compiler and DeepSpeed's operators


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
    """State of each DeepSpeed operator in torch's extension folder: built, missing, or locked."""
    states = {}
    for name in names:
        folder = Path(extensions) / name
        if (folder / "lock").exists():
            states[name] = "locked"
        else:
            states[name] = "built" if (folder / f"{name}.so").is_file() else "missing"
    return states


def judge_operators(facts: DeviceFacts, states: dict[str, str]) -> Finding:
    """Whether the first start has to build, or would wait for a lock that nobody holds."""
    if facts.problem:
        return Finding("operators", "warn", "unknown", "See devices.")
    found = f"{', '.join(f'{name} {state}' for name, state in states.items())} in {facts.extensions}"
    locked = [name for name, state in states.items() if state == "locked"]
    if locked:
        files = " ".join(str(Path(facts.extensions) / name / "lock") for name in locked)
        return Finding("operators", "warn", found, f"If no build is running, starts wait forever for: rm {files}")
    if "missing" in states.values():
        advice = "The first start that needs one builds it, about a minute each; keep TORCH_EXTENSIONS_DIR."
        return Finding("operators", "ok", found, advice)
    return Finding("operators", "ok", found)


# Hub


def probe_hub() -> HubFacts:
    """Ask the hub's endpoint for its header, for at most 3 s, unless HF_HUB_OFFLINE is set."""
    try:
        from huggingface_hub import constants
    except ImportError as error:
        return HubFacts("", False, "", 0, f"huggingface_hub can't be imported: {_first_line(str(error))}")
    cache = Path(constants.HF_HUB_CACHE)
    problem = "" if constants.HF_HUB_OFFLINE else _head_problem(constants.ENDPOINT)
    return HubFacts(constants.ENDPOINT, bool(constants.HF_HUB_OFFLINE), str(cache), _free_bytes(cache), problem)


def _head_problem(endpoint: str) -> str:
    """Why the endpoint does not answer, empty if it does. A thread, since a name lookup knows no time limit."""
    answers: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=SECONDS_HUB):
                answers.append("")
        except urllib.error.HTTPError as error:
            with error:
                answers.append("" if error.code < 500 else f"answers with status {error.code}")
        except urllib.error.URLError as error:
            answers.append(_first_line(str(error.reason)))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.append(_first_line(str(error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_HUB + 0.5)
    return answers[0] if answers else f"no answer within {SECONDS_HUB:.0f} s"


def judge_hub(facts: HubFacts) -> Finding:
    """Whether models can be fetched, and whether there is room to keep them."""
    if not facts.endpoint:
        return Finding("hub", "fail", facts.problem, BRING_TORCH)
    cache = f"cache {facts.cache}, {facts.cache_free_bytes / GIB:.1f} GiB free"
    if facts.offline:
        return Finding(
            "hub", "ok", f"HF_HUB_OFFLINE is set; {cache}", "Only models in the cache or on disk can be used."
        )
    if facts.problem:
        advice = "Embedded, cached and local models still work; else set HF_ENDPOINT or a proxy, or HF_HUB_OFFLINE=1."
        return Finding("hub", "warn", f"{facts.endpoint}: {facts.problem}; {cache}", advice)
    if facts.cache_free_bytes < LEAST_DISK_BYTES:
        advice = "A model takes 1 to 7 GiB: free space, or set HF_HOME to a larger disk."
        return Finding("hub", "warn", f"{facts.endpoint} answers; {cache}", advice)
    return Finding("hub", "ok", f"{facts.endpoint} answers; {cache}")


# Host


def probe_host() -> HostFacts:
    """Disk, shared memory, limits, processors; memory within the control group's limit where there is one."""
    folder, shm = Path.cwd(), Path("/dev/shm")
    memory = _meminfo()
    total, free = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - (used or 0)))
    return HostFacts(
        folder=str(folder),
        disk_free_bytes=_free_bytes(folder),
        shm_bytes=shutil.disk_usage(shm).total if shm.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_bytes=total,
        memory_free_bytes=free,
        threads=os.environ.get("OMP_NUM_THREADS", ""),
    )


def judge_host(facts: HostFacts) -> list[Finding]:
    """Disk, shared memory, open files, processors and memory."""
    disk = f"{facts.disk_free_bytes / GIB:.1f} GiB free at {facts.folder}"
    findings = [Finding("disk", "ok", disk)]
    if facts.disk_free_bytes < LEAST_DISK_BYTES:
        findings = [Finding("disk", "warn", disk, "Checkpoints may not fit: free 5 GiB, or use --out on another disk.")]

    if facts.shm_bytes is None:
        findings.append(Finding("shared memory", "warn", "no /dev/shm", "Ranks exchange tensors there: mount it."))
    elif facts.shm_bytes < LEAST_SHM_BYTES:
        advice = "Several ranks exchange tensors there: docker run --shm-size=2g (or --ipc=host)."
        findings.append(Finding("shared memory", "warn", f"{facts.shm_bytes / 2**20:.0f} MiB in /dev/shm", advice))
    else:
        findings.append(Finding("shared memory", "ok", f"{facts.shm_bytes / GIB:.1f} GiB in /dev/shm"))

    if 0 <= facts.open_files < LEAST_OPEN_FILES:  # -1 is no limit
        findings.append(Finding("open files", "warn", f"limit {facts.open_files}", "Raise it: ulimit -n 4096"))
    else:
        findings.append(Finding("open files", "ok", f"limit {facts.open_files if facts.open_files >= 0 else 'none'}"))

    threads = f"OMP_NUM_THREADS={facts.threads}" if facts.threads else "OMP_NUM_THREADS unset"
    memory = f"{facts.memory_free_bytes / GIB:.1f} of {facts.memory_bytes / GIB:.1f} GiB free"
    found = f"{facts.cores} cores, {threads}; {memory}"
    if facts.threads.isdigit() and int(facts.threads) > facts.cores:
        advice = f"More threads than cores slow each other down: OMP_NUM_THREADS={facts.cores} divided by the ranks."
        findings.append(Finding("cpu and memory", "warn", found, advice))
    elif facts.memory_free_bytes < LEAST_MEMORY_BYTES:
        advice = "Loading a model and offloading the optimizer take host memory: close other programs."
        findings.append(Finding("cpu and memory", "warn", found, advice))
    else:
        findings.append(Finding("cpu and memory", "ok", found))
    return findings


def _free_bytes(path: Path) -> int:
    """Free bytes of the disk that holds a path, which itself need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where the system has none."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return {}
    return {name: 1024 * int(kib) for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def _cgroup_bytes(name: str) -> int | None:
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _run_error(command: list[str], seconds: float) -> str:
    """Run a command; empty if it succeeds, else one line of why not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"
    except OSError as error:
        return str(error.strerror)
    return "" if done.returncode == 0 else _first_line(done.stderr) or f"code {done.returncode}"


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:200]


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(asdict(_probe_devices_here())) + "\n")
