"""torch's CUDA allocator: segments that grow, set by every entry before CUDA starts, unless the user said otherwise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import runner
from benchmarks.case import Case
from memdiff.cli import main
from memdiff.memory.knobs import MemoryConfig, resolved
from memdiff.runtime.cuda_allocator import VARIABLES, has_expandable_segments, setting_of, use_expandable_segments
from memdiff.runtime.ranks import Ranks
from memdiff.training.environment import describe
from memdiff.training.launcher import rank_environment

SET = "PYTORCH_ALLOC_CONF=expandable_segments:True"
SETTINGS = [  # (environment, what torch goes by, whether segments grow)
    ({}, None, False),
    ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, SET, True),
    ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64, expandable_segments:True"}, None, True),
    ({"PYTORCH_ALLOC_CONF": "expandable_segments:True,expandable_segments:False"}, None, False),
    ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync,expandable_segments:True"}, None, False),
    ({"PYTORCH_CUDA_ALLOC_CONF": ""}, "PYTORCH_CUDA_ALLOC_CONF=", False),
    ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:64", False),
]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("environment", "said", "grows"), SETTINGS)
def test_a_setting_is_read_and_left_as_it_is(environment: dict[str, str], said: str | None, grows: bool) -> None:
    assert said is None or setting_of(environment) == said
    assert has_expandable_segments(environment) is grows
    changed = dict(environment)
    use_expandable_segments(changed)
    assert changed == (environment or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})


@pytest.mark.parametrize("other", VARIABLES)
def test_torch_goes_by_the_variable_that_we_say(other: str) -> None:
    """torch's own reading, of each variable beside the newest one; set after the import, before the first use."""
    environment = {other: "max_split_size_mb:64"}
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    code = (
        "import os, torch\n"
        f"os.environ.update({environment})\n"
        "print(torch._C._accelerator_getAllocatorSettings(), end='')\n"
    )
    if not hasattr(torch._C, "_accelerator_getAllocatorSettings"):
        pytest.skip("this torch does not tell its setting")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert setting_of(environment) == f"{other}={said}"


def test_the_command_line_sets_it_for_itself_and_its_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the command: also that of a rank which the deepspeed launcher started by itself."""
    with pytest.raises(SystemExit) as ended:
        main(["--local_rank=0", "schema"])
    assert not ended.value.code and capsys.readouterr().out.startswith("{")
    assert setting_of() == SET
    assert rank_environment(1)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_the_command_line_imports_no_torch_before(tmp_path: Path) -> None:
    code = "import sys, memdiff.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_a_users_setting_reaches_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    use_expandable_segments()
    environment = rank_environment(2)
    assert setting_of(environment) == "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:64"
    assert "PYTORCH_ALLOC_CONF" not in environment


@pytest.mark.parametrize("module", ["memdiff.sampling.sample", "memdiff.digits.judge"])
def test_programs_beside_the_command_line_set_it(module: str) -> None:
    """Seen from inside, as the program runs into an error of its own."""
    code = (
        "import os, runpy, sys\n"
        f"sys.argv = [{module!r}, 'no-such-folder']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__')\n"
        "except (SystemExit, OSError):\n"
        "    pass\n"
        "print(os.environ.get('PYTORCH_ALLOC_CONF'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "expandable_segments:True"


def test_benchmark_workers_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "environment.json"
    worker = tmp_path / "python"
    tell = f"import json, os; open({str(seen)!r}, 'w').write(json.dumps(dict(os.environ)))"
    worker.write_text(f"#!{sys.executable}\n{tell}\n")
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    runner.run_case(Case("cpu", "x", "training", {}))
    assert setting_of(json.loads(seen.read_text())) == SET


def test_a_runs_record_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    knobs = resolved(MemoryConfig())
    assert describe(ranks, knobs)["allocator"] == "torch's default"
    monkeypatch.setitem(os.environ, "PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert describe(ranks, knobs)["allocator"] == SET
