"""Disk, shared memory, limits, processors and memory of this machine."""

import os
import re
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from memdiff.doctor.table import Finding
from memdiff.processes.cores import cores_here
from memdiff.runtime.units import GIB

LEAST_DISK_BYTES = 5 * GIB
LEAST_SHM_BYTES = 1 * GIB
LEAST_MEMORY_BYTES = 6 * GIB
LEAST_OPEN_FILES = 1024


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
        disk_free_bytes=free_bytes(folder),
        shm_bytes=shutil.disk_usage(shm).total if shm.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cores=cores_here(),
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
    detail = f"{facts.cores} cores, {threads}; {memory}"
    if facts.threads.isdigit() and int(facts.threads) > facts.cores:
        advice = f"More threads than cores slow each other down: OMP_NUM_THREADS={facts.cores} divided by the ranks."
        findings.append(Finding("cpu and memory", "warn", detail, advice))
    elif facts.memory_free_bytes < LEAST_MEMORY_BYTES:
        advice = "Loading a model and offloading the optimizer take host memory: close other programs."
        findings.append(Finding("cpu and memory", "warn", detail, advice))
    else:
        findings.append(Finding("cpu and memory", "ok", detail))
    return findings


def free_bytes(path: Path) -> int:
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
