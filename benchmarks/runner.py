"""Runs cases, each in a fresh process, and keeps one row a case in results/SUITE.jsonl. No torch.

Repeated runs go through all cases in turn, so that a slow minute of the machine is not one case's alone.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from benchmarks.provenance import ROOT, of_machine, of_tree
from memdiff.runtime.cuda_allocator import use_expandable_segments

RESULTS = ROOT / "benchmarks" / "results"
PEERS = Path(os.environ.get("MEMDIFF_PEERS_VENV", ROOT / ".cache" / "peers-venv"))
POLL_S, GRACE_S = 0.1, 10.0
Row = dict[str, Any]
Say = Callable[[str], None]


def run_cases(
    cases: Sequence[Case], *, repeats: int = 1, say: Say = print, done: Callable[[list[Row]], None] = lambda rows: None
) -> list[Row]:
    """One row a case, in order. With `repeats` the seconds are those of all runs together.

    `done` is told the rows so far after every run: who stops a long suite keeps what it has.
    """
    runs: dict[str, list[Row]] = {}
    for _ in range(repeats):
        for case in cases:
            row = run_case(case)
            runs.setdefault(case.name, []).append(row)
            say(one_line(row))
            done([merged(some) for some in runs.values()])
    return [merged(some) for some in runs.values()]


def run_case(case: Case) -> Row:
    """Starts the case's processes and waits for them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        log = Path(folder) / "log"
        start = time.monotonic()
        before = {**of_tree(), **of_machine()}
        codes = _processes(case, out, log)
        if out.is_file():
            result = json.loads(out.read_text())
        else:
            result = {"outcome": "failed", "message": why_ended(codes, log), "figures": {}, "process": {}}
        provenance = {**before, **result.pop("process"), "seconds_in_all": round(time.monotonic() - start, 1)}
        return {"suite": case.suite, "case": case.name, **data_of(case), **result, "provenance": provenance}


def data_of(case: Case) -> dict[str, Any]:
    """What of a case stands in its row."""
    data = json.loads(json.dumps(asdict(case)))  # as it will be read again: lists, not tuples
    return {key: data[key] for key in ("measure", "environment", "ranks", "threads", "about", "settings")}


def _processes(case: Case, out: Path, log: Path) -> list[int | None]:
    """Exit codes of all ranks; None where one was still running at the end of its time."""
    python = sys.executable if case.environment == "memdiff" else str(PEERS / "bin" / "python")
    started = []
    case_file = out.with_name("case.json")
    case_file.write_text(json.dumps(asdict(case)))
    port = str(free_port())
    with log.open("w") as output:
        for rank in range(case.ranks):
            threads = str(case.threads)
            environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.ranks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            use_expandable_segments(environment)
            process = subprocess.Popen(
                [python, "-m", "benchmarks.worker", "--case", str(case_file), "--out", str(out)],
                cwd=ROOT, stdout=output, stderr=output, env=environment,
            )  # fmt: skip
            started.append(process)
        end = time.monotonic() + case.timeout_s
        while any(process.poll() is None for process in started) and time.monotonic() < end:
            if any(process.poll() for process in started):  # one failed: give the others a moment to say so too
                end = min(end, time.monotonic() + GRACE_S)
            time.sleep(POLL_S)
        codes = [process.poll() for process in started]
        for process in started:
            process.kill()
            process.wait()
    return codes


def why_ended(codes: Sequence[int | None], log: Path) -> str:
    """Of processes that left no row: their codes, None for one that had to be stopped, and the log's last line."""
    if None in codes:
        return "took longer than its time"
    last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
    return f"exit codes {list(codes)}: {''.join(last)[:300]}"


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def merged(rows: Sequence[Row]) -> Row:
    """The last run's row with the seconds of all; a run that did not end well decides the outcome."""
    bad = [row for row in rows if row["outcome"] != "ok"]
    row = dict(bad[0] if bad else rows[-1])
    if not bad and "seconds_all" in row["figures"]:
        every = [seconds for one in rows for seconds in one["figures"]["seconds_all"]]
        figures = {**row["figures"], "seconds_all": every, "seconds_update": statistics.median(every)}
        row["figures"] = {**figures, "seconds_fastest": min(every)}
    return row


def one_line(row: Row) -> str:
    """What a person sees of a row as it comes."""
    figures = row["figures"]
    shown = [row["suite"], row["case"], row["outcome"]]
    if "peak_bytes" in figures:
        shown.append(f"{figures['peak_bytes'] / 2**20:,.1f} MiB")
    if "seconds_update" in figures:
        shown.append(f"{figures['seconds_update']:.2f} s")
    return "  ".join([*shown, row.get("message", "")]).rstrip()


def read_rows(file: Path) -> list[Row]:
    """Of a JSON-lines file; none where there is no file."""
    if not file.is_file():
        return []
    return _rows(file.read_text())


def committed_rows(suite: str, commit: str = "HEAD", *, root: Path = ROOT) -> list[Row]:
    """The rows of a suite in a commit, the baseline of new ones; none where it has none, or outside a checkout."""
    words = ["git", "show", f"{commit}:benchmarks/results/{suite}.jsonl"]
    shown = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    return _rows(shown.stdout) if shown.returncode == 0 else []


def _rows(lines: str) -> list[Row]:
    return [json.loads(line) for line in lines.splitlines() if line.strip()]


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Writes each row as one line of JSON, and makes the folder where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def keep(file: Path, rows: Sequence[Row], order: Sequence[str]) -> None:
    """Puts rows in the place of older ones of the same case, in the suite's order; cases that are no more go."""
    known: Mapping[str, Row] = {row["case"]: row for row in (*read_rows(file), *rows)}
    write_rows(file, [known[name] for name in order if name in known])
