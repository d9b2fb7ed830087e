"""Where the system is not Linux: no /proc, no processor sets, no kernel that ends children. Faked, not run there."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch

from memdiff.doctor import host
from memdiff.planner.processes import processes_here
from memdiff.processes import identity
from memdiff.processes.bound import end_with_parent
from memdiff.processes.cores import cores_here
from memdiff.training.launcher import rank_environment
from tests.house.rooms import PACKAGE


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Python and the file system look like on macOS, with torch loaded before that."""
    torch.cuda.is_available()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(identity, "PROC", tmp_path / "no-proc")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("mac")
def test_processors_are_counted() -> None:
    """All of them, for ranks, plans and the doctor alike."""
    assert cores_here() == 6 and processes_here() == 4
    assert rank_environment(2)["OMP_NUM_THREADS"] == "3"
    facts = host.probe_host()
    assert facts.cores == 6 and facts.open_files != 0
    host.judge_host(facts)


def test_one_place_asks_for_processor_sets() -> None:
    """Which other systems than Linux have none of."""
    asking = [file.name for file in PACKAGE.rglob("*.py") if "sched_getaffinity" in file.read_text()]
    assert asking == ["cores.py"]


@pytest.mark.usefixtures("mac")
def test_processes_are_known_by_number_alone() -> None:
    """A process counts as living, as nothing says otherwise: no run is ended, and no lock is taken over, by mistake."""
    me = identity.own_identity()
    assert identity.pid_of(me) == os.getpid() and identity.lives(me) and identity.lives("999999:")
    assert identity.identity(os.getpid()) is None and identity.parent_of(os.getpid()) is None
    assert not identity.is_orphan(os.getpid()) and identity.words_of(os.getpid()) == []
    assert list(identity.all_pids()) == [] and list(identity.children(os.getpid())) == []


@pytest.mark.usefixtures("mac")
def test_a_child_asks_no_kernel_to_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`prctl` is Linux's. Who started it is asked for all the same."""
    monkeypatch.setattr(ctypes, "CDLL", None)
    monkeypatch.setattr(sys, "platform", "darwin")
    end_with_parent(os.getppid())
    with pytest.raises(SystemExit):
        end_with_parent(-1)
