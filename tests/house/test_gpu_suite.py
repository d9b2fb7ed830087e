"""The suite of a card: what fits into its minutes, in which order, and the same code as a dry run on a CPU."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import run
from benchmarks.gpu.idle import busy_ns, idle_share, profiled
from benchmarks.gpu.rows import IMPORT_S, GpuRow, rows
from benchmarks.gpu.schedule import expected_seconds, fitting, side_by_side
from benchmarks.gpu.table import gpu_table, reported_table
from benchmarks.gpu.timing import calls_of, measure_timing
from benchmarks.measures.planning import changed_recipe
from benchmarks.runner import RESULTS, read_rows
from memdiff.memory.knobs import resolved
from tests.helpers.processes import run_python

CPU = torch.device("cpu")


def row(name: str, kind: Any, seconds: float, gib: float = 0.0) -> GpuRow:
    return GpuRow(name, kind, "sd15_alignprop_t4", {"who": "memdiff", "trl": "trl_ddpo"}, seconds, gib)


def test_rows_that_do_not_fit_leave_their_time_to_later_ones() -> None:
    """100 s after the import: 60 + 30 fit, 50 does not, 10 more do; of a peer's row nothing without its environment."""
    every = [row("a", "timing", 60), row("b", "timing", 50), row("p", "peers", 1), row("c", "timing", 30)]
    every += [row("m", "memory", 10, 4.0), row("n", "memory", 11, 4.0)]
    chosen, left = fitting(every, IMPORT_S + 100, 80.0, peers=False)
    assert [one.name for one in chosen] == ["a", "c", "m"]
    assert [one.name for one in left] == ["b", "p", "n"]
    assert IMPORT_S + expected_seconds(chosen, 80.0) == IMPORT_S + 100


def test_memory_rows_are_as_many_at_once_as_the_card_holds() -> None:
    """0.9 x 20 = 18 GiB: 10 + 8, then 9 + 9; two at once at most: 1 with the first that has a place."""
    sizes = (10.0, 9.0, 8.0, 9.0)
    groups = side_by_side([row(str(size), "memory", 1, size) for size in sizes], 20.0)
    assert [[one.gib for one in group] for group in groups] == [[10.0, 8.0], [9.0, 9.0]]
    assert [len(group) for group in side_by_side([row("x", "memory", 1, 0.1)] * 5, 20.0, 2)] == [2, 2, 1]


def test_what_runs_side_by_side_is_busy_once() -> None:
    """[0, 4], [2, 6] and [10, 12] of a span of 12: busy 8, idle a third."""
    intervals = [(2, 6), (10, 12), (0, 4)]
    assert busy_ns(intervals) == 8
    assert idle_share(intervals) == pytest.approx(1 / 3)
    assert idle_share([]) is None


def test_a_profile_counts_operators_and_leaves_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "traces" / "one.json"
    figures = profiled(lambda: torch.randn(64, 64) @ torch.randn(64, 64), CPU, trace)
    assert figures["kernels"] >= 3 and 0 <= figures["idle_share"] < 1
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("name", "memory", "expected"),
    [
        ("sd15 alignprop, recomputed", {}, (20, 20)),  # a rollout, then each step's graph and backward
        ("sd15 alignprop, recomputed", {"kept_steps": 20}, (0, 20)),  # graphs of the rollout itself
        ("sd15 alignprop, recomputed", {"micro_batch": 2}, (40, 40)),
        ("sd15 reinforce, one pass", {}, (0, 20)),
        ("sd15 reinforce, one pass", {"one_pass": False}, (20, 20)),
        ("celebahq reinforce, 14 images a piece", {}, (10, 10)),
        ("sdxl draft", {}, (6, 6)),
    ],
)
def test_the_floor_has_the_rounds_own_calls(name: str, memory: dict[str, Any], expected: tuple[int, int]) -> None:
    settings = next(one for one in rows() if one.name == f"{name}: floor").settings
    changes = {**settings["changes"], "memory": {**settings["changes"]["memory"], **memory}}
    recipe = changed_recipe({**settings, "changes": changes})
    assert calls_of(recipe, resolved(recipe.memory), recipe.run.images_per_round) == expected


@pytest.mark.parametrize("who", ["floor", "bare"])
def test_floor_and_bare_loop_run_dry(who: str) -> None:
    """In fp32 on a CPU, both of AlignProp's shape; bare also as REINFORCE."""
    for one in rows(dry=True):
        if one.name.startswith("sd15") and one.name.endswith(f": {who}"):
            assert measure_timing(one.settings)["seconds_update"] > 0


class Stub:
    """A process of the suite that does what a test says, told of its turn."""

    said: list[str] = []  # noqa: RUF012
    never_ends = ""

    def __init__(self, suite: run.Suite, turn_rows: Sequence[GpuRow] | GpuRow, turn: int, end: float = 0.0) -> None:
        self.rows = [turn_rows] if isinstance(turn_rows, GpuRow) else list(turn_rows)
        self.suite, self.turn, self.gone = suite, turn, False
        Stub.said.append(f"start {self.rows[0].name}")

    def go(self) -> None:
        Stub.said.append(f"go {self.rows[0].name}")

    def still_runs(self) -> bool:
        return self.rows[0].name == Stub.never_ends and not self.gone

    def end(self) -> None:
        self.gone = True

    def take_rows(self) -> None:
        if not self.still_runs() and not self.gone:
            for one in self.rows:
                self.suite.add(one, {"outcome": "ok", "figures": {}})

    def account(self, *, late: bool) -> None:
        for one in self.rows:
            self.suite.add(one, {"outcome": "left out" if late else "failed", "message": "no row"})


class Watch:
    """In the place of the module time."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run_with_stubs(
    monkeypatch: pytest.MonkeyPatch, folder: Path, every: list[GpuRow], minutes: float, never_ends: str = ""
) -> list[Any]:
    monkeypatch.setattr(run, "_TimingProcess", Stub)
    monkeypatch.setattr(run, "_RowProcess", Stub)
    monkeypatch.setattr(run, "fitting", lambda every, *_, **__: (list(every), []))
    Stub.said, Stub.never_ends = [], never_ends
    lines: list[str] = []
    known = run.Suite(every, minutes, 20.0, folder, say=lines.append, peers=folder).run()
    assert len(lines) == len(known) == len(every)
    return known


@pytest.mark.parametrize(
    ("cores", "said"),
    [
        (4, "start t, start m, start n, go t, start o, go m, go n, go o"),
        (3, "start t, go t, start m, start n, start o, go m, go n, go o"),  # two of the three are for what is measured
    ],
)
def test_the_next_turn_imports_while_one_measures_if_there_are_cores_and_memory_rows_come_after_timing(
    cores: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "cores_here", lambda: cores)
    every = [row("t", "timing", 1), row("m", "memory", 1, 9.0), row("n", "memory", 1, 9.0), row("o", "memory", 1, 9.0)]
    known = run_with_stubs(monkeypatch, tmp_path, every, 7.0)
    assert Stub.said == said.split(", ")
    assert [one["outcome"] for one in known] == ["ok"] * 4


def test_what_still_runs_at_the_end_of_the_minutes_is_ended_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that never ends has a row, and so have those whose turn never came. Time goes on in sleep alone."""
    watch = Watch()
    monkeypatch.setattr(run, "time", watch)
    every = [row("t", "timing", 1), row("m", "memory", 1, 15.0), row("n", "memory", 1, 15.0)]
    known = run_with_stubs(monkeypatch, tmp_path, every, 7.0, never_ends="m")
    assert {one["case"]: one["outcome"] for one in known} == {"t": "ok", "m": "left out", "n": "left out"}
    assert "go n" not in Stub.said and 7 * 60 - run.LAST_WORDS_S < watch.now < 7 * 60


def test_tables_set_an_update_beside_the_floor_and_a_peak_beside_its_plan() -> None:
    """3 s over a floor of 2: 1.50; 4 GiB allocated of 5 live planned: 0.800; rows from elsewhere say that they are."""
    gib = 2**30
    rows_of_table = [
        {"case": "a: memdiff", "outcome": "ok", "about": {"kind": "timing"},
         "figures": {"seconds_update": 3.0, "seconds_fastest": 3.0, "idle_share": 0.25,
                     "seconds_phases": {"train": 2.0}}},
        {"case": "a: floor", "outcome": "ok", "about": {"kind": "timing"},
         "figures": {"seconds_update": 2.0, "seconds_fastest": 2.0}},
        {"case": "memory: b", "outcome": "ok", "about": {"kind": "memory"},
         "figures": {"planned_bytes": 6 * gib, "planned_live_bytes": 5 * gib, "capped_bytes": 6 * gib,
                     "allocated_bytes": 4 * gib, "reserved_bytes": 6 * gib}},
        {"case": "memory: c", "outcome": "oom", "message": "no", "about": {"kind": "memory"}, "figures": {}},
    ]  # fmt: skip
    table = gpu_table(rows_of_table)
    assert "| a | memdiff | ok | 3.00 | 1.50 |  | 25.0% | train 2.00 |" in table
    assert "| b | ok | 5.00 | 6.00 | 4.00 | 6.00 | 0.800 | 1.000 |" in table
    assert "| c | oom: no |" in table
    reported = reported_table(read_rows(RESULTS / "gpu_reported.jsonl"))
    assert reported.count("as reported at 3ded396, not reproduced") == 10
    assert "| sdxl, budget 7.0, idle parts off | 6.83 | 6.76 | 10.94 |" in reported


@pytest.mark.slow
def test_the_whole_suite_dry(tmp_path: Path) -> None:
    """Real processes: one timing process, a memory row's own; rows, profiles and the table are written."""
    cases = ("--case", "celebahq*", "--case", "memory: sd15, budget 2.6")
    folders = ("--results", str(tmp_path), "--profiles", str(tmp_path / "profiles"))
    done = run_python("-m", "benchmarks", "run", "gpu", "--dry-run", "--minutes", "60", *folders, *cases)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {one["case"]: one["outcome"] for one in read_rows(tmp_path / "gpu.jsonl")}
    assert set(outcomes.values()) == {"ok"} and len(outcomes) == 3, done.stdout
    assert "no figure of it is a card's" in done.stdout and "update / floor" in done.stdout
    assert list((tmp_path / "profiles").glob("celebahq*.json"))
