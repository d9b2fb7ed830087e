import io
import itertools
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from memdiff.doctor import compiler, devices, examine, host, hub, packages
from memdiff.doctor.compiler import CompilerFacts
from memdiff.doctor.devices import Device, DeviceFacts
from memdiff.doctor.host import HostFacts
from memdiff.doctor.hub import HubFacts
from memdiff.doctor.packages import PackageFacts
from memdiff.doctor.table import Finding
from memdiff.training.launcher import rank_environment
from tests.helpers.processes import SECONDS_UNTIL_HUNG

GIB = 2**30
T4 = Device("Tesla T4", 15 * GIB, (7, 5))
CPU = DeviceFacts(accelerator="cpu", accelerator_bf16=True, extensions="/x")
FOUR_T4 = DeviceFacts(
    devices=[T4] * 4, torch_cuda="12.6", nccl=True, accelerator="cuda", accelerator_fp16=True, extensions="/x"
)
PACKAGES = PackageFacts(
    python="3.11.7",
    requires_python=">=3.11",
    requirements=["torch>=2.10", "deepspeed<0.20,>=0.19.8", "Scikit_Learn>=1.6", "pytest>=8; extra == 'dev'"],
    versions={"torch": "2.13.0+cpu", "deepspeed": "0.19.8", "scikit-learn": "1.9.1"},
)
COMPILER = CompilerFacts("/usr/bin/g++", "/usr/bin/ninja", True, True, "")
HUB = HubFacts("https://hub.example", False, "/cache", 50 * GIB, "")
HOST = HostFacts("/runs", 50 * GIB, 8 * GIB, 4096, 8, 32 * GIB, 20 * GIB, "2")


def states(findings):
    return {finding.name: finding.state for finding in findings}


def test_packages_within_bounds_pass():
    """Local build tags, letter case and separators don't matter; requirements of an extra are not asked for."""
    findings = packages.judge_packages(PACKAGES)
    assert states(findings) == {"python": "ok", "packages": "ok"}
    assert "torch 2.13.0+cpu" in findings[1].detail


@pytest.mark.parametrize(
    ("versions", "detail", "advice"),
    [
        ({"torch": "2.9.1"}, "torch 2.9.1 is outside >=2.10", 'pip install "torch>=2.10"'),
        ({"deepspeed": "0.20.0"}, "deepspeed 0.20.0 is outside <0.20,>=0.19.8", '"deepspeed<0.20,>=0.19.8"'),
        ({"scikit-learn": None}, "Scikit_Learn is missing", 'pip install "Scikit_Learn>=1.6"'),
    ],
)
def test_packages_missing_or_outside_fail(versions, detail, advice):
    """The finding names the package and the bound, the advice is a pip command for it alone."""
    merged = {name: version for name, version in (PACKAGES.versions | versions).items() if version is not None}
    finding = packages.judge_packages(replace(PACKAGES, versions=merged))[1]
    assert finding.state == "fail" and finding.detail == detail
    assert advice in finding.advice and finding.advice.count(">=") == 1


def test_old_python_fails_and_missing_metadata_warns():
    """Python is held to Requires-Python; without memdiff's metadata nothing is claimed about packages."""
    findings = packages.judge_packages(replace(PACKAGES, python="3.10.4", requirements=None))
    assert states(findings) == {"python": "fail", "packages": "warn"}
    assert ">=3.11" in findings[0].advice


@pytest.mark.parametrize(
    ("vision", "needs", "state"),
    [
        ("0.28.0+cpu", "torch==2.13.0", "ok"),
        ("0.28.0", "torch==2.13.0", "ok"),
        ("0.27.0+cpu", "torch==2.12.0", "fail"),
        ("0.28.0+cu126", "torch==2.13.0", "fail"),
    ],
)
def test_torchvision_must_match_torch(vision, needs, state):
    """Both the torch that it asks for and the build (cpu, cu126) must be the installed one."""
    facts = replace(PACKAGES, versions=PACKAGES.versions | {"torchvision": vision}, torchvision_needs=needs)
    finding = packages.judge_packages(facts)[2]
    assert finding.state == state
    assert ("pip uninstall torchvision" in finding.advice) == (state == "fail")


def test_devices():
    """No GPU, unequal GPUs and old ones are a warning; four equal T4 are fine; a failed import is a failure."""
    assert devices.judge_devices(CPU).state == "warn"
    assert "CUDA build" in devices.judge_devices(CPU).advice
    assert "nvidia-smi" in devices.judge_devices(replace(CPU, torch_cuda="12.6")).advice
    good = devices.judge_devices(FOUR_T4)
    assert (good.state, good.detail) == ("ok", "4 x Tesla T4, 15.0 GiB, sm_75")
    mixed = devices.judge_devices(replace(FOUR_T4, devices=[T4, Device("NVIDIA A100", 40 * GIB, (8, 0))]))
    assert mixed.state == "warn" and "CUDA_VISIBLE_DEVICES" in mixed.advice
    assert devices.judge_devices(replace(FOUR_T4, devices=[Device("P100", 16 * GIB, (6, 0))])).state == "warn"
    broken = devices.judge_devices(DeviceFacts(problem="ImportError: libcudart.so.12"))
    assert broken.state == "fail" and "libcudart" in broken.detail


def test_precision():
    """T4: fp16 only. Ampere: bf16 too. CPU without fp16: fp32. GPUs that DeepSpeed would not use: a failure."""
    t4 = devices.judge_precision(FOUR_T4)
    assert t4.state == "ok" and t4.advice.startswith("fp16 only")
    ampere = devices.judge_precision(
        replace(FOUR_T4, devices=[Device("A100", 40 * GIB, (8, 0))], accelerator_bf16=True)
    )
    assert ampere.detail.endswith("sm_80 computes in fp16, bf16 and fp32")
    cpu = devices.judge_precision(CPU)
    assert cpu.state == "ok" and cpu.detail.endswith("(cpu): bf16, fp32") and "fp32" in cpu.advice
    assert devices.judge_precision(replace(CPU, accelerator_fp16=True)).advice == ""
    assert devices.judge_precision(replace(FOUR_T4, accelerator="cpu")).state == "fail"
    assert devices.judge_precision(replace(FOUR_T4, accelerator_fp16=False)).state == "warn"
    assert devices.judge_precision(DeviceFacts(problem="x")).state == "warn"


def test_allocator():
    """What is in force is said; a setting that turns growing segments off is warned of where there is a GPU."""
    grow, fixed = (
        {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
        {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
    )
    assert devices.judge_allocator(FOUR_T4, grow).detail == "PYTORCH_ALLOC_CONF=expandable_segments:True"
    cases = [(FOUR_T4, grow), (FOUR_T4, fixed), (FOUR_T4, {}), (FOUR_T4, fixed | grow), (CPU, fixed)]
    eval_reward = [devices.judge_allocator(facts, environment) for facts, environment in cases]
    assert [finding.state for finding in eval_reward] == ["ok", "warn", "warn", "warn", "ok"]
    assert eval_reward[1].detail == "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:64"
    assert "add expandable_segments:True to it, or unset it" in eval_reward[1].advice


def test_links():
    """Several GPUs need NCCL; missing peer access is told, not blamed."""
    assert devices.judge_links(CPU).state == "ok"
    assert devices.judge_links(replace(FOUR_T4, nccl=False)).state == "fail"
    assert "all 4 GPUs" in devices.judge_links(FOUR_T4).detail
    apart = devices.judge_links(replace(FOUR_T4, peers_missing=12))
    assert apart.state == "ok" and "12 of 12 pairs" in apart.detail


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({}, "ok", ""),
        ({"compiler": "", "error": "no compiler"}, "fail", "g++"),
        ({"python_header": False, "error": "Python.h: No such file"}, "fail", "python3-dev"),
        ({"error": "cannot find -lstdc++"}, "fail", "Repair"),
        ({"ninja": ""}, "warn", "PATH"),
        ({"ninja": "", "ninja_beside_python": False}, "fail", "pip install ninja"),
    ],
)
def test_compiler(change, state, words):
    """Each missing tool has its own advice; the first that is missing is named."""
    finding = compiler.judge_compiler(replace(COMPILER, **change))
    assert finding.state == state and words in finding.advice


def test_compiler_probe_reports_a_compiler_that_fails(tmp_path, monkeypatch):
    """CXX that exits with an error is found out by the test build, with the first line it wrote."""
    fake = tmp_path / "fake-c++"
    fake.write_text("#!/bin/sh\necho 'fatal: no licence' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    facts = compiler.probe_compiler()
    assert (facts.compiler, facts.error) == (str(fake), "fatal: no licence")
    assert compiler.judge_compiler(facts).state == "fail"


def test_the_doctor_looks_where_a_run_builds(monkeypatch):
    """With TORCH_EXTENSIONS_DIR, and without it: in the checkout's own cache, whatever lies in the user's."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")
    assert devices._probe_devices_here().extensions == rank_environment(1)["TORCH_EXTENSIONS_DIR"] == "/elsewhere"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert devices._probe_devices_here().extensions == rank_environment(1)["TORCH_EXTENSIONS_DIR"]


def test_operators(tmp_path):
    """Built, missing and locked are told apart by the files torch leaves; a lock names the file to remove."""
    assert compiler.probe_operators(str(tmp_path)) == {"deepspeed_shm_comm": "missing", "cpu_adam": "missing"}
    facts = replace(CPU, extensions=str(tmp_path))
    missing = compiler.judge_operators(facts, compiler.probe_operators(str(tmp_path)))
    assert missing.state == "ok" and "about a minute each" in missing.advice
    for name in compiler.OPS_CPU:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.so").touch()
    built = compiler.judge_operators(facts, compiler.probe_operators(str(tmp_path)))
    assert (built.state, built.advice) == ("ok", "")
    (tmp_path / "cpu_adam" / "lock").touch()
    locked = compiler.judge_operators(facts, compiler.probe_operators(str(tmp_path), compiler.OPS_GPU))
    assert locked.state == "warn" and str(tmp_path / "cpu_adam" / "lock") in locked.advice


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({}, "ok", ""),
        ({"offline": True}, "ok", "in the cache or on disk"),
        ({"problem": "timed out"}, "warn", "HF_ENDPOINT"),
        ({"cache_free_bytes": GIB}, "warn", "HF_HOME"),
        ({"endpoint": "", "problem": "huggingface_hub can't be imported"}, "fail", "pip install"),
    ],
)
def test_hub(change, state, words):
    """An unreachable hub is a warning, since embedded and cached models work without it."""
    finding = hub.judge_hub(replace(HUB, **change))
    assert finding.state == state and words in finding.advice


def test_hub_probe_is_bounded(monkeypatch):
    """A closed port, a broken address and a server that never answers all end as a text: the last one, which waits for
    as long as it is asked to, is not waited for."""
    assert "refused" in hub._head_problem("http://127.0.0.1:9")
    assert hub._head_problem("no address")
    released = threading.Event()

    def hang(*_, **__):
        released.wait()
        raise OSError("released")

    monkeypatch.setattr(hub, "SECONDS_HUB", 0.2)
    monkeypatch.setattr(hub.urllib.request, "urlopen", hang)
    assert "no answer" in hub._head_problem("http://127.0.0.1:9")
    released.set()


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"disk_free_bytes": 4 * GIB}, "disk", "--out"),
        ({"shm_bytes": 64 << 20}, "shared memory", "--shm-size"),
        ({"shm_bytes": None}, "shared memory", "mount"),
        ({"open_files": 256}, "open files", "ulimit -n"),
        ({"threads": "16"}, "cpu and memory", "OMP_NUM_THREADS=8"),
        ({"memory_free_bytes": GIB}, "cpu and memory", "close other programs"),
    ],
)
def test_host_limits_warn(change, name, words):
    """Each limit has its warning and its advice, and leaves the other findings as they are."""
    assert set(states(host.judge_host(HOST)).values()) == {"ok"}
    findings = host.judge_host(replace(HOST, **change))
    assert [finding.name for finding in findings if finding.state != "ok"] == [name]
    assert words in next(finding.advice for finding in findings if finding.name == name)


def test_no_limit_on_open_files_is_fine():
    """The system writes no limit as -1."""
    assert states(host.judge_host(replace(HOST, open_files=-1)))["open files"] == "ok"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import time; time.sleep(3600)", "did not load within"),
        ("import os; os.abort()", "ended with code"),
        ("raise SystemExit(3)", "ended with code 3"),
    ],
)
def test_a_child_that_hangs_or_dies_is_a_finding(script, words, monkeypatch):
    """A driver that hangs, aborts or exits on import becomes the problem of the facts, and no child is left."""
    monkeypatch.setattr(devices, "SECONDS_DEVICES", 1.0)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    facts = devices.collect_device_probe(child)
    assert words in facts.problem and child.returncode is not None
    assert devices.judge_devices(facts).state == "fail"


def test_a_check_that_fails_is_a_finding(monkeypatch):
    """No exception of a check leaves examine: the others still report."""
    monkeypatch.setattr(examine, "probe_host", lambda: 1 // 0)
    monkeypatch.setattr(examine, "start_device_probe", lambda: OSError(2, "gone"))
    monkeypatch.setattr(examine, "probe_hub", lambda: HUB)
    findings = examine.examine()
    assert "ZeroDivisionError" in next(finding.detail for finding in findings if finding.name == "host")
    assert states(findings)["devices"] == "fail" and states(findings)["hub"] == "ok"


def test_show_prints_all_and_returns_the_exit_code():
    """Markup in a finding is printed as it is; 0 with warnings alone, 2 with a failure."""
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    findings = [Finding("a", "ok", "[bold]x[/bold]"), Finding("b", "warn", "y", "do z")]
    assert examine.show(findings, console) == 0
    assert "[bold]x[/bold]" in stream.getvalue() and "do z" in stream.getvalue()
    assert examine.show([*findings, Finding("c", "fail", "w")], console) == 2


def test_examine_this_machine(monkeypatch):
    """A real run: every check reports, with advice wherever something is not well. On a busy machine loading torch and
    compiling may take longer than the limits, whose sum a user waits for at most."""
    assert hub.SECONDS_HUB + compiler.SECONDS_COMPILE + devices.SECONDS_DEVICES < 30
    monkeypatch.setattr(devices, "SECONDS_DEVICES", SECONDS_UNTIL_HUNG)
    monkeypatch.setattr(compiler, "SECONDS_COMPILE", SECONDS_UNTIL_HUNG)
    findings = examine.examine()
    names = [finding.name for finding in findings]
    expected = ["python", "packages", "compiler", "hub", "disk", "shared memory", "open files", "cpu and memory"]
    assert [name for name in names if name != "torchvision"] == [
        *expected,
        "devices",
        "precision",
        "operators",
        "links",
        "allocator",
    ]
    assert all(finding.advice for finding in findings if finding.state != "ok")
    assert not [finding.detail for finding in findings if "the check itself failed" in finding.detail]
    assert states(findings)["python"] == "ok" and "DeepSpeed" in findings[names.index("precision")].detail


def test_a_busy_machine_is_no_broken_compiler() -> None:
    """A test extension that takes too long is a warning, at which a run starts: its own build has no such limit."""
    finding = compiler.judge_compiler(replace(COMPILER, error=f"{compiler.NOT_DONE} 8 s"))
    assert (finding.state, "busy" in finding.advice) == ("warn", True)
    assert compiler.judge_compiler(replace(COMPILER, error="cannot find -lm")).state == "fail"


@pytest.mark.parametrize(("worked", "state"), [([1.0, 2.0, 3.0, 4.0], "warn"), ([1.0, 2.0, 2.0], "fail")])
def test_a_busy_machine_is_no_broken_driver(worked, state, monkeypatch):
    """A child that goes on taking the processor's time is waited for, to a limit, which is a warning. One that takes
    none any more hangs: a failure, as soon as that is seen."""
    times = iter(worked)
    for name, seconds in (("SECONDS_DEVICES", 0.2), ("SECONDS_BUSY", 0.8), ("SECONDS_BETWEEN_LOOKS", 0.3)):
        monkeypatch.setattr(devices, name, seconds)
    monkeypatch.setattr(devices, "seconds_worked", lambda pid: next(times))
    words = [sys.executable, "-c", "import time; time.sleep(3600)"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    facts = devices.collect_device_probe(child)
    assert child.returncode is not None and facts.is_busy == (state == "warn")
    finding = devices.judge_devices(facts)
    assert (finding.state, "busy" in finding.advice) == (state, state == "warn")


def test_a_slow_child_is_heard(monkeypatch):
    """What a child says after the first limit counts, if it worked in the meantime."""
    times = itertools.count()
    monkeypatch.setattr(devices, "SECONDS_DEVICES", 0.1)
    monkeypatch.setattr(devices, "SECONDS_BUSY", SECONDS_UNTIL_HUNG)
    monkeypatch.setattr(devices, "SECONDS_BETWEEN_LOOKS", 0.2)
    monkeypatch.setattr(devices, "seconds_worked", lambda pid: float(next(times)))
    script = "import time, json; time.sleep(1); print(json.dumps({'devices': [], 'accelerator': 'cpu'}))"
    words = [sys.executable, "-c", script]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert devices.collect_device_probe(child) == DeviceFacts(accelerator="cpu")


def test_seconds_worked_are_a_processors():
    """Of this process they grow by its work, and only by that; a process that is gone has none."""
    before, goal = devices.seconds_worked(os.getpid()), time.process_time() + 0.3
    while time.process_time() < goal:
        pass
    assert devices.seconds_worked(os.getpid()) - before > 0.1 and devices.seconds_worked(2**22 + 1) == 0
