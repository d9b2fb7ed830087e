"""GPUs, precisions and links, as torch and DeepSpeed see them.

They are asked in a child process with a time limit, `python -m memdiff.doctor.devices`, since a broken driver can abort
or hang whoever imports them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memdiff.doctor.table import REINSTALL, Finding, first_line
from memdiff.runtime.cuda_allocator import EXPANDABLE, has_expandable_segments, setting_of
from memdiff.runtime.operator_folder import operator_folder
from memdiff.runtime.units import GIB

SECONDS_DEVICES = 15.0  # for the child that imports torch and DeepSpeed; imports take 4 to 12 s on idle cores
SECONDS_BUSY = 150.0  # for one that still works after those: other programs have the cores
SECONDS_BETWEEN_LOOKS = 5.0
STILL_WORKING = 0.05  # seconds of a processor between two looks; one that waits for a driver takes none
NOT_DONE = "did not load within"


@dataclass(frozen=True)
class Device:
    """Name, memory in bytes and compute capability of one CUDA device."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class DeviceFacts:
    """What torch and DeepSpeed say; `problem` is why they could not be asked."""

    problem: str = ""
    is_busy: bool = False  # the problem is that other programs have the processors
    devices: list[Device] = field(default_factory=list)
    torch_cuda: str | None = None  # the CUDA version torch was built for; None: a CPU build
    nccl: bool = False
    peers_missing: int = 0  # ordered pairs of devices without peer access
    accelerator: str = ""
    accelerator_fp16: bool = False
    accelerator_bf16: bool = False
    extensions: str = ""  # the folder where torch builds its extensions


def _probe_devices_here() -> DeviceFacts:
    try:
        import torch
        from deepspeed.accelerator import get_accelerator
        from torch.utils import cpp_extension

        accelerator = get_accelerator()
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        return DeviceFacts(problem=f"{type(error).__name__}: {first_line(str(error))}")
    if accelerator is None:
        return DeviceFacts(problem="DeepSpeed found no accelerator")
    indices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    seen = [torch.cuda.get_device_properties(index) for index in indices]
    pairs = [(one, other) for one in indices for other in indices if one != other]
    build = f"py{sys.version_info.major}{sys.version_info.minor}_"
    build += f"cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "cpu"
    root = operator_folder() or str(Path(cpp_extension.get_default_build_root()) / build)
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


def start_device_probe() -> subprocess.Popen[str] | OSError:
    """The child, or why it could not be started."""
    package_parent = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "memdiff.doctor.devices"],
            env={**os.environ, "PYTHONPATH": search},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        return error


def collect_device_probe(child: subprocess.Popen[str] | OSError) -> DeviceFacts:
    """What the child said, after at most 15 s, on a busy machine after at most 150 s; none is left behind.

    A driver that hangs leaves it waiting; on a busy machine it goes on taking the processor's time.
    """
    if isinstance(child, OSError):
        return DeviceFacts(problem=f"can't start {sys.executable}: {child.strerror}")
    waited, worked = SECONDS_DEVICES, seconds_worked(child.pid)
    try:
        output, errors = child.communicate(timeout=SECONDS_DEVICES)
    except subprocess.TimeoutExpired:
        said = None
        while said is None:
            before, worked = worked, seconds_worked(child.pid)
            is_busy = worked - before > STILL_WORKING
            if not is_busy or waited >= SECONDS_BUSY:
                child.kill()
                child.communicate()
                return DeviceFacts(problem=f"torch and DeepSpeed {NOT_DONE} {waited:.0f} s", is_busy=is_busy)
            with suppress(subprocess.TimeoutExpired):
                said = child.communicate(timeout=SECONDS_BETWEEN_LOOKS)
            waited += SECONDS_BETWEEN_LOOKS
        output, errors = said
    lines = output.strip().splitlines()
    if child.returncode != 0 or not lines:
        last = (errors.strip().splitlines() or ["no output"])[-1]
        return DeviceFacts(problem=f"loading torch and DeepSpeed ended with code {child.returncode}: {last[:200]}")
    facts: dict[str, Any] = json.loads(lines[-1])
    devices = [Device(one["name"], one["memory_bytes"], tuple(one["capability"])) for one in facts.pop("devices")]
    return DeviceFacts(devices=devices, **facts)


def seconds_worked(pid: int) -> float:
    """A process's time on processors; 0 where the system does not say, as of one that waits."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def judge_devices(facts: DeviceFacts) -> Finding:
    """Which devices there are, and whether they are alike."""
    if facts.is_busy:
        return Finding("devices", "warn", facts.problem, "The machine is busy: look again when other programs end.")
    if facts.problem:
        advice = f"{REINSTALL}; a hang points at the GPU driver (nvidia-smi)."
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
    detail = "; ".join(f"{texts.count(text)} x {text}" for text in dict.fromkeys(texts))
    if len({(one.name, one.memory_bytes, one.capability) for one in facts.devices}) > 1:
        advice = "The slowest and the smallest set the pace: choose equal ones with CUDA_VISIBLE_DEVICES."
        return Finding("devices", "warn", detail, advice)
    if facts.devices[0].capability < (7, 0):
        return Finding("devices", "warn", detail, "Older than sm_70: no tensor cores, so fp16 saves memory, not time.")
    return Finding("devices", "ok", detail)


def judge_precision(facts: DeviceFacts) -> Finding:
    """Which of fp16, bf16 and fp32 can be trained in, by the devices and by DeepSpeed's accelerator."""
    if facts.problem:
        return Finding("precision", "warn", "unknown", "See devices.")
    says = [word for word, yes in (("fp16", facts.accelerator_fp16), ("bf16", facts.accelerator_bf16)) if yes]
    detail = f"DeepSpeed's accelerator ({facts.accelerator}): {', '.join([*says, 'fp32'])}"
    if not facts.devices:
        if facts.accelerator_fp16:
            return Finding("precision", "ok", detail)
        return Finding("precision", "ok", detail, "fp16 is not supported on this CPU: precision auto takes fp32.")
    if facts.accelerator != "cuda":
        advice = "There are GPUs, but DeepSpeed would not use them: unset DS_ACCELERATOR or set it to cuda."
        return Finding("precision", "fail", detail, advice)
    weakest = min(one.capability for one in facts.devices)
    name = f"sm_{weakest[0]}{weakest[1]}"
    if not facts.accelerator_fp16:
        return Finding("precision", "warn", f"{detail}; {name}", "No fp16 here: set model.precision to fp32.")
    if weakest < (8, 0):
        advice = "fp16 only: no native bf16, no flash-attention 2. precision auto takes fp16."
        return Finding("precision", "ok", f"{detail}; {name} computes in fp16 and fp32", advice)
    return Finding("precision", "ok", f"{detail}; {name} computes in fp16, bf16 and fp32")


def judge_allocator(facts: DeviceFacts, environment: Mapping[str, str]) -> Finding:
    """How torch's CUDA allocator is set; plans assume segments that expand."""
    setting = setting_of(environment) or "torch's default"
    if not facts.devices:
        return Finding("allocator", "ok", setting, "Has no effect without a GPU.")
    if has_expandable_segments(environment):
        return Finding("allocator", "ok", setting)
    advice = f"Fixed segments fragment, so that runs take more than planned: add {EXPANDABLE} to it, or unset it."
    return Finding("allocator", "warn", setting, advice)


def judge_links(facts: DeviceFacts) -> Finding:
    """Whether several GPUs can talk to each other."""
    count = len(facts.devices)
    if count < 2:
        return Finding("links", "ok", "not needed: fewer than two GPUs")
    if not facts.nccl:
        return Finding("links", "fail", f"{count} GPUs, torch without NCCL", "Install torch's Linux CUDA build.")
    if facts.peers_missing:
        detail = f"NCCL; {facts.peers_missing} of {count * (count - 1)} pairs without peer access"
        return Finding("links", "ok", detail, "Usual for T4: traffic goes through host memory. Needs a large /dev/shm.")
    return Finding("links", "ok", f"NCCL; peer access between all {count} GPUs")


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(asdict(_probe_devices_here())) + "\n")
