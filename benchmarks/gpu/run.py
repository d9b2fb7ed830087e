"""The suite within its minutes: which rows fit, the processes that measure them, rows as they come. No torch.

Processes are few, since each imports for some 20 s: one for all timing rows, one for each memory row and each of TRL's.
Those that come later import and plan meanwhile, where there are cores for them beside what is measured, and wait for a
file. Timing rows have the card for themselves.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import T4_GIB, GpuRow
from benchmarks.gpu.schedule import AT_ONCE, fitting, side_by_side
from benchmarks.provenance import ROOT, of_machine, of_tree
from benchmarks.runner import PEERS, Row, data_of, free_port, one_line, why_ended
from memdiff.processes.cores import cores_here
from memdiff.runtime.cuda_allocator import use_expandable_segments

NO_PEERS = "no environment or pipeline of the peers (make bench-gpu-peers makes both)"
POLL_S = 0.2
CORES_FOR_MEASURED = 2  # its Python and its backward have a thread each
LAST_WORDS_S = 5.0  # of the minutes, for ending what still runs


@dataclass
class Suite:
    """One run of it. `say` and `done` hear of every row as it comes: a line, and all rows so far."""

    rows: Sequence[GpuRow]
    minutes: float
    card_gib: float
    folder: Path  # for the processes' files and logs
    dry: bool = False
    say: Callable[[str], None] = print
    done: Callable[[list[Row]], None] = lambda rows: None
    profiles: Path | None = None
    peers: Path = PEERS
    known: list[Row] = field(default_factory=list)
    _before: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> list[Row]:
        """All rows, those that were left out too. Every process has ended when it returns or raises."""
        self._before = {**of_tree(), **of_machine()}
        end = time.time() + 60 * self.minutes - LAST_WORDS_S
        has_peers = (self.peers / "bin" / "python").is_file() and all(
            (ROOT / row.settings["pipeline"] / "model_index.json").is_file() for row in self.rows if row.kind == "peers"
        )
        chosen, left = fitting(self.rows, end - time.time(), self.card_gib, peers=has_peers)
        for row in left:
            reason = NO_PEERS if row.kind == "peers" and not has_peers else ""
            self.add(row, {"outcome": "left out", "message": reason or f"does not fit into {self.minutes:g} minutes"})
        timing, peers = ([row for row in chosen if row.kind == kind] for kind in ("timing", "peers"))
        groups = side_by_side(
            [row for row in chosen if row.kind == "memory"], self.card_gib, 2 if self.dry else AT_ONCE
        )
        processes: list[_Process] = []
        try:
            turns = [*([timing] if timing else []), *([row] for row in peers), *groups]
            for number, turn in enumerate(turns):
                if time.time() > end:
                    for row in turn:
                        self.add(row, {"outcome": "left out", "message": "its turn came after the end of the minutes"})
                    continue
                waiting = [process for process in processes if process.turn == number]
                if not waiting:
                    waiting = self._start(turn, number, end)
                    processes += waiting
                if number + 1 < len(turns) and self._has_cores_for(turns[number + 1]):
                    processes += self._start(turns[number + 1], number + 1, end)
                for process in waiting:
                    process.go()
                self._follow(waiting, end)
        finally:
            for process in processes:
                process.end()
        return self.known

    def _has_cores_for(self, turn: Sequence[GpuRow]) -> bool:
        """Whether a turn's processes may import while another is measured. No figure of a dry run would suffer."""
        return self.dry or len(turn) + CORES_FOR_MEASURED <= cores_here()

    def _start(self, turn: Sequence[GpuRow], number: int, end: float) -> list["_Process"]:
        if turn[0].kind == "timing":
            return [_TimingProcess(self, turn, number, end)]
        return [_RowProcess(self, row, number) for row in turn]

    def _follow(self, processes: Sequence["_Process"], end: float) -> None:
        """Rows as they come, until all have ended or the minutes are over."""
        while True:
            running = [process for process in processes if process.still_runs()]
            for process in processes:
                process.take_rows()
            if not running:
                break
            if time.time() > end:
                for process in running:
                    process.end()
                    process.take_rows()
                break
            time.sleep(POLL_S)
        for process in processes:
            process.account(late=time.time() > end)

    def add(self, row: GpuRow, result: Mapping[str, Any]) -> None:
        """One row more, said and written."""
        if any(one["case"] == row.name for one in self.known):
            return
        case = row.case()
        process = dict(result.get("process", {}))
        figures = dict(result.get("figures", {}))
        kept: Row = {
            "suite": "gpu", "case": row.name, **data_of(case), "outcome": result["outcome"],
            **({"message": result["message"]} if result.get("message") else {}), "figures": figures,
            "provenance": {**self._before, **process, "dry": self.dry},
        }  # fmt: skip
        self.known.append(kept)
        self.say(one_line(kept))
        self.done(self.known)


class _Process:
    """A process of the suite that waits for its turn, with a log of its own."""

    def __init__(self, suite: Suite, turn: int, python: Path, words: Sequence[str], rows: Sequence[GpuRow]) -> None:
        self.suite, self.turn, self.rows = suite, turn, rows
        self.name = f"{turn}-{rows[0].name.replace('/', ' ').replace(' ', '_')}"
        self.log, self._go = suite.folder / f"{self.name}.log", suite.folder / f"{self.name}.go"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "OMP_NUM_THREADS": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "MEMDIFF_BENCH_GO": str(self._go)}
        use_expandable_segments(environment)
        with self.log.open("w") as output:
            self._process = subprocess.Popen(
                [str(python), *words], cwd=ROOT, stdout=output, stderr=output, env=environment
            )

    def go(self) -> None:
        """Its turn has come."""
        self._go.touch()

    def still_runs(self) -> bool:
        """Whether it may write more rows."""
        return self._process.poll() is None

    def end(self) -> None:
        """Kills it, and waits until it is gone."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def take_rows(self) -> None:
        """Rows that it has written since it was asked last."""
        raise NotImplementedError

    def account(self, *, late: bool) -> None:
        """A row for each that has none."""
        why = "stopped at the end of the minutes" if late else why_ended([self._process.poll()], self.log)
        for row in self.rows:
            self.suite.add(row, {"outcome": "left out" if late else "failed", "message": why})


class _TimingProcess(_Process):
    def __init__(self, suite: Suite, rows: Sequence[GpuRow], turn: int, end: float) -> None:
        cases, self._out, self._seen = suite.folder / "timing.json", suite.folder / "timing.jsonl", 0
        entries = []
        for row in rows:
            case = {**asdict(row.case()), "estimate_s": row.estimate_s}
            if suite.profiles is not None and row.settings["who"] == "memdiff":
                trace = suite.profiles / f"{row.name.replace(':', '').replace(',', '').replace(' ', '_')}.json"
                case["settings"] = {**case["settings"], "profile": str(trace)}
            entries.append(case)
        cases.write_text(json.dumps(entries))
        words = ["-m", "benchmarks.gpu.timing_process", str(cases), str(self._out), "--ends", str(end)]
        super().__init__(suite, turn, Path(sys.executable), words, rows)

    def take_rows(self) -> None:
        """Whole lines alone: the last one may be being written."""
        lines = self._out.read_text().split("\n")[:-1] if self._out.is_file() else []
        for line in lines[self._seen :]:
            result = json.loads(line)
            self.suite.add(next(row for row in self.rows if row.name == result["case"]), result)
        self._seen = len(lines)


class _RowProcess(_Process):
    def __init__(self, suite: Suite, row: GpuRow, turn: int) -> None:
        number = len(list(suite.folder.glob("*.case.json")))
        case, self._out = suite.folder / f"{number}.case.json", suite.folder / f"{number}.row.json"
        case.write_text(json.dumps(asdict(row.case())))
        python = suite.peers / "bin" / "python" if row.kind == "peers" else Path(sys.executable)
        words = ["-m", "benchmarks.worker", "--case", str(case), "--out", str(self._out)]
        super().__init__(suite, turn, python, words, [row])

    def take_rows(self) -> None:
        """Its one row, once it has ended."""
        if not self.still_runs() and self._out.is_file():
            self.suite.add(self.rows[0], json.loads(self._out.read_text()))


def run_suite(
    rows: Sequence[GpuRow],
    *,
    minutes: float,
    dry: bool,
    say: Callable[[str], None],
    done: Callable[[list[Row]], None],
    profiles: Path | None = None,
) -> list[Row]:
    """Says what was found, how long it took and what was left out. Raises ConfigError without a card, but for `dry`."""
    card_gib = 8.0 if dry else card_here()
    start = time.monotonic()
    say(
        "a dry run on this machine's CPU with the embedded models: no figure of it is a card's" if dry
        else f"one card of {card_gib:.1f} GiB, {minutes:g} minutes"
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="memdiff_gpu_") as folder:
        suite = Suite(rows, minutes, card_gib, Path(folder), dry, say, done, profiles)
        known = suite.run()
    left = [row["case"] for row in known if row["outcome"] == "left out"]
    measured = len(known) - len(left)
    say(f"{measured} rows in {(time.monotonic() - start) / 60:.1f} of {minutes:g} minutes; {len(left)} left out")
    return known


def card_here() -> float:
    """GiB of the first card, by nvidia-smi, so that this process needs no CUDA. Raises ConfigError without one."""
    from memdiff.errors import ConfigError

    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=0"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        gib = float(shown.split()[0]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise ConfigError(
            "the suite gpu needs a CUDA device, got none; --dry-run goes through it on a CPU, and the suite plan "
            "simulates a card"
        ) from None
    if gib < T4_GIB * 0.98:
        raise ConfigError(
            f"the suite gpu stands for a T4 of {T4_GIB} GiB, and this card has {gib:.2f}; use a larger one"
        )
    return gib
