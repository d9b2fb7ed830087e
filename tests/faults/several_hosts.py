"""Trials over two hosts on this machine: killed, cut off, stopped, resumed, as on one host.

On every commit the hosts are two names of this machine, whose `ssh` stays here. `in_namespaces` gives them networks,
hostnames and process numbers of their own, and an sshd each.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from memdiff.processes.identity import all_pids, words_of
from tests.faults.results import PATIENCE, Result, attempt, struck
from tests.faults.runs import Run, last_round, signalled, status, to_the_end, trained, write_recipe
from tests.faults.trials import LIMIT, NO_PROGRESS, WATCHDOG_SECONDS
from tests.helpers import hosts as two
from tests.helpers.hosts import Hosts, cut_off, start_again

AGAIN = "the same command goes on"
PORT = 29731


class Bed:
    """Two hosts, a recipe, a run folder: what is trained on them, and how."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.folder, self.hosts, self.out = folder, hosts, folder / "run"
        self.recipe = write_recipe(folder / "recipe.yaml")
        self.hostfile = folder / "hosts"
        self.hostfile.write_text("a slots=1\nb slots=1\n")
        self.path = f"{hosts.path}{os.pathsep}{os.environ['PATH']}"

    def train(self, **environment: str) -> Run:
        """`memdiff train --hostfile`, begun in the run folder."""
        words = ["memdiff", "train", self.recipe, "--hostfile", self.hostfile, "--out", self.out]
        return Run([*words], self.folder / "run.log", PATH=self.path, **environment)

    def train_bare(self) -> Run:
        """The same by `deepspeed --hostfile`, whose pdsh goes to the hosts."""
        address = [] if self.hosts.has_namespaces else ["--master_addr", "127.0.0.1", "--no_ssh_check"]
        words = ["deepspeed.launcher.runner", "--log_level", "error", "--hostfile", self.hostfile, *address]
        words += ["--master_port", PORT, "--module", "memdiff", "train", self.recipe, "--out", self.out]
        return Run(words, self.folder / "bare.log", PATH=self.path)

    def further(self) -> Callable[[], bool]:
        """Whether a round was done since this is called."""
        return trained(self.out, last_round(self.out) + 1)


def strikes(bed: Bed) -> Iterator[Result]:
    """R5, R7 and R8 over hosts, in one run folder, and R1 at its end."""
    run, there = bed.train(), trained(bed.out, 1)

    def kill_rank() -> float:
        run.until(there)
        pid = run.rank(1)
        assert pid is not None
        return struck(run, lambda: os.kill(pid, signal.SIGKILL), 6, "on b) was killed by SIGKILL", 10.0)

    yield attempt("R5", "kill -9 of rank 1, on host b", run, kill_rank)
    lost, further = bed.train(), bed.further()

    def lose_host() -> float:
        lost.until(further)
        return struck(lost, lambda: bed.hosts.kill("b"), 6, "host b was lost", 25.0)

    yield attempt("R5", "host b loses its power", lost, lose_host)
    start_again(bed.hosts.path, bed.hosts, "b")
    stopped, and_further = bed.train(), bed.further()

    def stop() -> float:
        stopped.until(and_further)
        took = struck(stopped, signalled(stopped, "memdiff", signal.SIGTERM), 75, f"is saved; {AGAIN}", 25.0)
        assert status(bed.out)["state"] == "stopped"
        return took

    yield attempt("R7", "SIGTERM to memdiff over two hosts", stopped, stop)
    last = bed.train()
    yield attempt("R1", "two hosts: bitwise as one host's, after all that", last, to_the_end(last, bed.out, bed.recipe))


def more_strikes(bed: Bed) -> Iterator[Result]:
    """R6, R7 and R8 over hosts, and R5 where the network fails without a word."""
    bed.out = bed.folder / "more"
    bed.recipe = write_recipe(bed.folder / "more.yaml", run=LIMIT)
    for target, what, action in (
        ("R8", "kill -9 of memdiff, two hosts", _kill_memdiff), ("R7", "SIGTERM to rank 1, on host b", _stop_rank),
        ("R6", "SIGSTOP of rank 1, on host b", _freeze),
    ):  # fmt: skip
        run, there = bed.train(), bed.further()
        yield attempt(target, what, run, lambda run=run, there=there, action=action: action(bed, run, there))
    if bed.hosts.has_namespaces:
        cut, there = bed.train(), bed.further()
        yield attempt("R5", "host b is off the network", cut, lambda: _cut(cut, there))
    bare, there = bed.train_bare(), bed.further()
    yield attempt("R7", "SIGTERM to deepspeed --hostfile", bare, lambda: _stop_bare(bed, bare, there))
    killed, there = bed.train_bare(), bed.further()
    yield attempt("R5", "kill -9 of rank 1 under deepspeed --hostfile", killed, lambda: _kill_bare(killed, there))


def _kill_memdiff(bed: Bed, run: Run, there: Callable[[], bool]) -> float:
    run.until(there)
    begun = time.monotonic()
    run.process.kill()
    run.process.wait()
    assert run.orphans(PATIENCE * 5) == [] and far_ends() == [], "something lives on"
    return time.monotonic() - begun


def _stop_rank(bed: Bed, run: Run, there: Callable[[], bool]) -> float:
    run.until(there)
    return struck(run, signalled(run, "rank 1", signal.SIGTERM), 75, "is saved", 25.0)


def _freeze(bed: Bed, run: Run, there: Callable[[], bool]) -> float:
    run.until(there)
    strike = signalled(run, "rank 1", signal.SIGSTOP)
    return struck(run, strike, 6, f"rank 1 {NO_PROGRESS}", WATCHDOG_SECONDS + 15)


def _cut(run: Run, there: Callable[[], bool]) -> float:
    run.until(there)
    cut_off("b")
    try:
        begun = time.monotonic()
        code = run.end()
        took = time.monotonic() - begun
        lines = [line for line in run.said().splitlines() if line.startswith("memdiff: error[")]
        assert code == 6 and len(lines) == 1 and "host b was lost (" in lines[0], f"{code}: {run.said()[-1500:]}"
    finally:
        cut_off("b", cut=False)
    return took


def _stop_bare(bed: Bed, run: Run, there: Callable[[], bool]) -> float:
    """DeepSpeed's runner ends at once, whatever comes of the ranks: they save."""
    run.until(there)
    done = last_round(bed.out)
    begun = time.monotonic()
    signalled(run, "memdiff", signal.SIGTERM)()
    run.end()
    assert run.orphans(PATIENCE * 25) == [], "ranks live on"
    assert status(bed.out)["state"] == "stopped" and status(bed.out)["round"] >= done, status(bed.out)
    return time.monotonic() - begun


def _kill_bare(run: Run, there: Callable[[], bool]) -> float:
    run.until(there)
    pid = run.rank(1)
    assert pid is not None
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    run.end()  # with pdsh's exit code, which DeepSpeed hands on: 0 was seen
    left = run.orphans(PATIENCE * 10)
    assert left == [], f"ranks live on: {left}"
    return time.monotonic() - begun


def far_ends() -> list[list[str]]:
    """What runs at the far ends of connections."""
    return [words for pid in all_pids() if "memdiff.processes.host" in (words := words_of(pid))]


def on_this_host(folder: Path) -> Iterator[Result]:
    """Hosts that are two names of this one."""
    with two.here(folder / "bin") as hosts:
        yield from strikes(Bed(folder, hosts))


def in_namespaces(folder: Path) -> Iterator[Result]:
    """With networks of their own; and what is not tried on every commit, by two names where there are none."""
    why = two.why_no_namespaces()
    place: AbstractContextManager[Hosts] = two.here(folder / "bin") if why else two.in_namespaces(folder / "bin")
    with place as hosts:
        bed = Bed(folder, hosts)
        if why:
            yield Result("R5", "two hosts with networks of their own", 0.0, None, skipped=why)
        else:
            yield from strikes(bed)
        yield from more_strikes(bed)
