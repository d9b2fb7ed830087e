"""`memdiff bench`: every part in its order, each written down as soon as it is known. No torch."""

import json
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import typer

from memdiff.bench.block import BenchBlock, RecipeRow
from memdiff.bench.cases import PARITY_RECIPE, RecipeCase, cases_for, world_sizes
from memdiff.bench.children import run_module
from memdiff.bench.parity import parity_rows
from memdiff.doctor.devices import Device, DeviceFacts
from memdiff.doctor.examine import look
from memdiff.errors import ConfigError, MemdiffError, StopRequested
from memdiff.memory.host import machine_bytes
from memdiff.planner.warm_up import warm_round_cache
from memdiff.processes.cores import cores_here
from memdiff.recipe.reading import check_recipe, laid_over, read_recipe_data
from memdiff.runtime.units import GIB
from memdiff.training.launcher import choose_world_size, rank_environment

NO_GPU = "no GPU: the embedded model"
COUNTED = "bytes on a CPU: every live tensor, also what a GPU would leave on the host; the plan is one for a GPU"
ONE_GPU = "one GPU: nothing was exchanged between ranks"
Say = Callable[[str], None]


class Bench:
    """The block as it grows, in its folder. `say` takes a line that people read."""

    def __init__(self, folder: Path, say: Say = typer.echo) -> None:
        self.folder, self.say, self.block = folder, say, BenchBlock(versions_here())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part whose failure is a line of the block; however it ends, what is known is written."""
        try:
            yield
        except (MemdiffError, OSError, subprocess.SubprocessError) as error:
            self.block.failures.append(without_home(f"{name}: {error}"))
            self.say(f"failed: {name}: {error}")
        finally:
            self.block.write(self.folder)

    def doctor(self) -> DeviceFacts:
        """Findings that are not well, and the devices."""
        self.say("doctor: versions, devices, compiler, hub, disk (up to 20 s)")
        findings, devices = look()
        self.block.machine = machine_of(devices)
        self.block.doctor = [without_home(f"{f.state}: {f.name}: {f.detail}") for f in findings if f.state != "ok"]
        self.say(f"{len(findings) - len(self.block.doctor)} checks are well; {self.block.machine}")
        for line in self.block.doctor:
            self.say(line)
        self.block.failures += [f"doctor: {finding.name}" for finding in findings if finding.state == "fail"]
        self.block.write(self.folder)
        return devices

    def recipe(self, case: RecipeCase) -> None:
        """Plans and runs one recipe in a process of its own."""
        images, steps = case.changes["run.images_per_round"], case.changes["sampler.steps"]
        self.say(f"{case.recipe}: planning, then rounds of {images} image(s) and {steps} steps; takes minutes")
        raw, file = read_recipe_data(Path(case.recipe))
        recipe = check_recipe(laid_over(raw, case.changes), source=file.name, folder=file.resolve().parent)
        warm_round_cache(recipe, 1)
        result = self.folder / f"{case.recipe}.row.json"
        result.unlink(missing_ok=True)
        environment = {**rank_environment(1), "HF_HUB_OFFLINE": "1"}  # weights that are here, and none fetched
        words = (case.recipe, json.dumps(dict(case.changes)), str(result.resolve()))
        log = self.folder / f"{case.recipe}.log"
        run_module("memdiff.bench.one_recipe", *words, environment=environment, log=log)
        row = RecipeRow(**json.loads(result.read_text()))
        result.unlink()
        self.block.recipes.append(row)
        self.say(row.line())

    def parity(self, sizes: list[int], backend: str) -> None:
        """One round on each number of ranks, by the real launcher."""
        self.block.parity_recipe = PARITY_RECIPE
        self.say(f"two rounds of {PARITY_RECIPE} on {', '.join(map(str, sizes))} rank(s) over {backend}")
        with tempfile.TemporaryDirectory(prefix="memdiff-bench-") as runs:
            for row in parity_rows(sizes, Path(runs), rank_environment(max(sizes)), backend=backend):
                self.block.parity.append(row)
                self.block.write(self.folder)
                self.say(row.line())


def bench(out: Path, gpus: int | None = None) -> int:
    """Measures this machine and prints the block. Returns the exit code: 0 where every part has its row, else 2.

    Raises ConfigError for a folder that can't be written or a wrong `gpus`, and StopRequested for Ctrl-C, when what was
    measured is written.
    """
    if gpus is not None:  # else a driver that hangs whoever asks it is the doctor's to find
        choose_world_size(gpus)
    bench_here = Bench(made_folder(out))
    try:
        measure(bench_here, gpus)
    except KeyboardInterrupt:
        bench_here.block.failures.append("stopped on request; the parts that follow were not measured")
        bench_here.block.write(bench_here.folder)
        typer.echo(shown(bench_here))
        raise StopRequested(f"stopped on request; what was measured is in {out}") from None
    typer.echo(shown(bench_here))
    return 0 if bench_here.block.is_well else 2


def measure(bench_here: Bench, gpus: int | None) -> None:
    """All parts; one that fails doesn't keep the others from being measured."""
    devices = bench_here.doctor()
    cards = [device.memory_bytes for device in devices.devices]
    notes = bench_here.block.notes
    notes += [NO_GPU, COUNTED] if not cards else [ONE_GPU] if len(cards) == 1 else []
    if not cards:
        bench_here.say(f"{NO_GPU}, on the CPU; a minute or two")
    for case in cases_for(cards, machine_bytes() or 0):
        notes += [case.note] if case.note else []
        with bench_here.part(case.recipe):
            bench_here.recipe(case)
    with bench_here.part("ranks"):
        bench_here.parity(world_sizes(len(cards), gpus), "NCCL" if cards else "gloo")


def made_folder(out: Path) -> Path:
    """Raises ConfigError where it can't be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "bench.json.tmp").write_text("")
        (out / "bench.json.tmp").unlink()
    except OSError as error:
        raise ConfigError(f"--out {out} can't be written: {error.strerror}") from None
    return out.resolve()


def shown(bench_here: Bench) -> str:
    """The block between two lines, and where it lies."""
    return (
        f"\n--- paste from here into an issue: https://github.com/memdiff/memdiff/issues/new?template=bench.yml\n"
        f"{bench_here.block.markdown()}--- to here; also in {bench_here.folder}/bench.md and bench.json"
    )


def without_home(text: str) -> str:
    """For a page that strangers read: paths without the name of who is at home there."""
    return text.replace(f"{Path.home()}/", "~/")


def machine_of(devices: DeviceFacts) -> str:
    """Cards, driver, CUDA; of a machine without one its processor and cores."""
    if not devices.devices:
        return f"CPU {cpu_name()}"
    names = [_card(device) for device in devices.devices]
    cards = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return f"{cards}, driver {driver() or 'unknown'}, CUDA {devices.torch_cuda}"


def _card(device: Device) -> str:
    return f"{device.name} ({device.memory_bytes / GIB:.1f} GiB, sm_{device.capability[0]}{device.capability[1]})"


def cpu_name() -> str:
    """As the system calls it, with its cores."""
    name = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.machine()}, {cores_here()} cores"


def driver() -> str:
    """Of the first card; empty where nvidia-smi does not say."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return ""


def versions_here() -> dict[str, str | None]:
    """What is installed, and today's date."""
    from memdiff.training.environment import versions

    return {**versions(), "measured on": datetime.now(UTC).strftime("%Y-%m-%d")}
