"""Which devices the ranks see: those that CUDA_VISIBLE_DEVICES names where `memdiff train` or a script is started.

DeepSpeed's own runner and launch.py run here on stand-ins for their child processes; nothing needs a GPU.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memdiff import cli
from memdiff.errors import ConfigError
from memdiff.processes.stops import Stops, exit_at_once
from memdiff.training import launcher
from memdiff.training.launcher import VISIBLE, VISIBLE_TO_RANKS
from memdiff.training.run_folder import RunFolder
from tests.commands.test_sample_text import request

ROOT = Path(__file__).resolve().parents[2]
VISIBLE_DEVICES = ["2,3", "3,1", "GPU-8f3c0e1a,GPU-77aa0b2c", "MIG-1f2e,MIG-3d4c", "", None]


class Started:
    """A child process that ended well."""

    pid, returncode, stderr = 1, 0, None

    def wait(self) -> int:
        return 0

    def poll(self) -> int:
        return 0

    def kill(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Command and environment of every process that is started in an environment of its own from here on."""
    started, real = [], subprocess.Popen

    def popen(command: list[str], env: dict[str, str] | None = None, **options: Any) -> Any:
        if env is None:
            return real(command, **options)  # DeepSpeed asks the machine for its cores
        started.append((command, dict(env)))
        return Started()

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(signal, "signal", lambda number, handler: signal.SIG_DFL)
    return started


def become(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("visible", VISIBLE_DEVICES)
def test_ranks_of_a_run_see_what_was_visible(
    visible: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list
) -> None:
    """Through the launcher's own code: rank r of two gets the whole list in its order, and LOCAL_RANK r in it."""
    from deepspeed.launcher import launch, runner

    monkeypatch.setenv(VISIBLE_TO_RANKS, "left over from somewhere")
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    folder = RunFolder(tmp_path)
    monkeypatch.setattr(RunFolder, "status", lambda self: {"state": "complete", "exit_code": 0})
    launcher.launch(["train", "recipe.yaml"], folder, 2, Stops(exit_at_once))
    command, environment = started.pop()
    become(monkeypatch, environment)
    monkeypatch.setattr(runner, "fetch_hostfile", lambda path: None)
    runner.main(command[command.index("deepspeed.launcher.runner") + 1 :])
    command, environment = started.pop()
    become(monkeypatch, environment)
    monkeypatch.setattr(sys, "argv", command[command.index("deepspeed.launcher.launch") :])
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    launch.main()
    assert len(started) == 2
    for rank, (command, environment) in enumerate(list(started)):
        become(monkeypatch, environment)
        (word,) = [word for word in command if word.startswith("--local_rank=")]
        cli._ranks(int(word.partition("=")[2]))
        expected = "0,1" if visible is None else visible
        assert (os.environ[VISIBLE], os.environ["LOCAL_RANK"]) == (expected, str(rank))


@pytest.mark.parametrize("visible", ["3,1", "GPU-8f3c0e1a,GPU-77aa0b2c", ""])
def test_sampling_processes_see_what_is_visible(
    visible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list
) -> None:
    """Each process of `memdiff sample` gets the list as it stands, and its own place in it."""
    from memdiff.sampling import processes

    monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.setattr(processes, "choose_world_size", lambda gpus: 2)
    with pytest.raises(AssertionError, match="0 images were written"):
        processes.sample_over_processes(request("digits", tmp_path / "out"), 2)
    seen = [(environment[VISIBLE], environment["LOCAL_RANK"]) for _, environment in started]
    assert seen == [(visible, "0"), (visible, "1")]


@pytest.mark.parametrize("script", ["train_1gpu.sh", "train_4xt4.sh", "train_2cpu.sh"])
@pytest.mark.parametrize("visible", ["3,1", "", None])
def test_the_scripts_hand_the_devices_on(script: str, visible: str | None, tmp_path: Path) -> None:
    """Past DeepSpeed's runner, which would complain that it ignores the variable, to the ranks."""
    stand_in = tmp_path / "deepspeed"
    stand_in.write_text(f'#!/bin/sh\necho "${{{VISIBLE}-unset}} ${{{VISIBLE_TO_RANKS}-unset}}"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"} | (
        {VISIBLE: visible} if visible is not None else {}
    )
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / script), "recipe.yaml"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"unset {'unset' if visible is None else visible}\n", done.stderr


def test_more_ranks_than_visible_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what hides the others."""
    import torch

    monkeypatch.setenv(VISIBLE, "2,3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert launcher.choose_world_size(None) == launcher.choose_world_size(2) == 2
    with pytest.raises(ConfigError, match=r"--gpus must be 1\.\.2 \(CUDA_VISIBLE_DEVICES=2,3\), got 4"):
        launcher.choose_world_size(4)
