"""The benchmark suite's own arithmetic: baselines, tables, provenance, timelines, verdicts, the processes of a case."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import baseline, pictures, runner, tables
from benchmarks.__main__ import SUITES, main
from benchmarks.case import Case, overlaid
from benchmarks.measures.planning import changed_recipe
from benchmarks.measures.untrained import largest
from benchmarks.measuring import Phase, bytes_of, seconds_of, timeline_of
from benchmarks.peers import verdict
from benchmarks.peers.brightness import PROMPTS, score
from benchmarks.provenance import of_process, of_tree
from benchmarks.worker import outcome_of
from memdiff.planner.ledger import Event
from memdiff.recipe.reading import check_recipe

CPU = torch.device("cpu")
MACHINE = {"platform": "Linux x86_64", "cpu": "a", "cores": 2, "device": "CPU", "threads": 2, "torch": "2.13.0"}


def row(case: str = "one", *, outcome: str = "ok", provenance: dict[str, Any] | None = None, **figures: Any) -> Any:
    return {
        "suite": "cpu", "case": case, "outcome": outcome, "figures": figures, "settings": {"updates": 3}, "about": {},
        "ranks": 1, "provenance": MACHINE | {"commit": "abc", "clean": True, "date": "2026-01-01"} | (provenance or {}),
    }  # fmt: skip


def verdicts(new: Any, old: Any) -> dict[str, str]:
    return {finding.figure: finding.verdict for finding in baseline.compare([new], [old])}


@pytest.mark.parametrize(
    ("figure", "old", "new", "expected"),
    [
        ("peak_bytes", 10_000, 10_100, "same"),  # exactly 1 %
        ("peak_bytes", 10_000, 10_101, "worse"),
        ("peak_bytes", 10_000, 9_899, "better"),
        ("seconds_update", 2.0, 2.29, "same"),
        ("seconds_update", 2.0, 2.31, "worse"),
        ("seconds_update", 2.0, 1.69, "better"),
        ("flops", 0, 0, "same"),
        ("flops", 0, 1, "worse"),
    ],
)
def test_memory_may_differ_by_one_percent_and_speed_by_fifteen(figure: str, old: Any, new: Any, expected: str) -> None:
    assert verdicts(row(**{figure: new}), row(**{figure: old})) == {figure: expected}


def test_seconds_of_another_machine_are_not_compared_and_bytes_are() -> None:
    old, new = row(peak_bytes=100, seconds_update=1.0), row(peak_bytes=200, seconds_update=9.0, provenance={"cpu": "b"})
    assert verdicts(new, old) == {"peak_bytes": "worse", "seconds_update": "not compared"}
    other_torch = row(peak_bytes=200, seconds_update=1.0, provenance={"torch": "2.14.0"})
    assert verdicts(other_torch, old) == {"peak_bytes": "not compared", "seconds_update": "same"}


def test_other_settings_are_another_measurement() -> None:
    changed = row(peak_bytes=200) | {"settings": {"updates": 5}}
    assert verdicts(changed, row(peak_bytes=100)) == {"peak_bytes": "not compared"}


def test_running_out_of_memory_is_worse_and_no_longer_running_out_is_better() -> None:
    good, bad = row(peak_bytes=1), row(outcome="oom")
    assert verdicts(bad, good) == {"outcome": "worse"}
    assert verdicts(good, bad) == {"outcome": "better"}
    assert verdicts(bad, bad) == {}


def test_rows_on_one_side_only_are_told_and_do_not_fail() -> None:
    findings = baseline.compare([row("new")], [row("gone")])
    assert [(f.case, f.verdict) for f in findings] == [("new", "not compared"), ("gone", "not compared")]
    assert not baseline.failed(findings)
    assert "cpu: 0 figures as in the baseline, 2 not" in baseline.report("cpu", findings)


def test_check_fails_the_command_where_something_got_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "committed_rows", lambda suite, commit: [row(peak_bytes=100)])
    runner.write_rows(tmp_path / "results" / "cpu.jsonl", [row(peak_bytes=100)])
    assert main(["check"]) == 0
    runner.write_rows(tmp_path / "results" / "cpu.jsonl", [row(peak_bytes=102)])
    assert main(["check", "cpu"]) == 1
    assert "worse: cpu one peak_bytes: 100 -> 102 (+2.0%)" in capsys.readouterr().out
    assert main(["check", "cpus"]) == 2


def test_the_baseline_is_what_a_commit_has(tmp_path: Path) -> None:
    """Rows that are written and not committed are new; an unknown commit or suite has none."""

    def git(*words: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / "benchmarks" / "results" / "cpu.jsonl"
    runner.write_rows(file, [row(peak_bytes=1)])
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "rows")
    runner.write_rows(file, [row(peak_bytes=2)])
    assert runner.committed_rows("cpu", root=tmp_path) == [row(peak_bytes=1)]
    assert runner.committed_rows("cpu", "nothing", root=tmp_path) == runner.committed_rows("gpu", root=tmp_path) == []


def test_repeated_runs_are_one_row_of_all_their_seconds() -> None:
    """(1, 2, 9) and (3, 4, 5) together: median 3.5, least 1."""
    one = row(seconds_all=[1.0, 2.0, 9.0], seconds_update=2.0, seconds_fastest=1.0)
    two = row(seconds_all=[3.0, 4.0, 5.0], seconds_update=4.0, seconds_fastest=3.0, peak_bytes=7)
    figures = runner.merged([one, two])["figures"]
    assert (figures["seconds_update"], figures["seconds_fastest"], figures["peak_bytes"]) == (3.5, 1.0, 7)
    assert runner.merged([one, row(outcome="oom"), two])["outcome"] == "oom"


def test_kept_rows_replace_their_own_and_follow_the_suites_order(tmp_path: Path) -> None:
    file = tmp_path / "cpu.jsonl"
    runner.keep(file, [row("b", peak_bytes=1), row("a", peak_bytes=1), row("gone")], ["b", "a", "gone"])
    runner.keep(file, [row("b", peak_bytes=2)], ["a", "b"])
    assert [(r["case"], r["figures"]["peak_bytes"]) for r in runner.read_rows(file)] == [("a", 1), ("b", 2)]


def test_a_case_runs_in_a_process_of_its_own_and_its_failure_is_a_row() -> None:
    """TRL is not in memdiff's environment: that is what the row says, and provenance is there all the same."""
    case = Case("peers", "x", "trl_ddpo", {"steps": 2, "sizes": (1, 2)}, threads=1)
    result_row = runner.run_case(case)
    assert result_row["outcome"] == "failed"
    assert result_row["message"] == "ModuleNotFoundError: No module named 'trl'"
    provenance = result_row["provenance"]
    assert provenance["threads"] == 1
    assert provenance["torch"] == torch.__version__
    assert {"commit", "clean", "date", "cpu", "cores", "device", "seconds_in_all"} <= provenance.keys()
    assert result_row["settings"] == {"steps": 2, "sizes": [1, 2]}, "as it will be read again"


def test_a_process_that_dies_is_a_row_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dead = tmp_path / "bin" / "python"
    dead.parent.mkdir()
    dead.write_text("#!/bin/sh\necho no room left >&2\nkill -9 $$\n")
    dead.chmod(0o755)
    monkeypatch.setattr(runner, "PEERS", tmp_path)
    result_row = runner.run_case(Case("peers", "x", "bare", {}, environment="peers", ranks=2))
    assert result_row["outcome"] == "failed"
    assert "-9" in result_row["message"]
    assert "no room left" in result_row["message"]


def test_out_of_memory_is_an_outcome() -> None:
    def measure(settings: Any) -> Any:
        raise torch.OutOfMemoryError(f"tried to allocate {settings['gib']} GiB\nmore")

    assert outcome_of(measure, {"gib": 3}) == {"outcome": "oom", "message": "tried to allocate 3 GiB", "figures": {}}


def test_bytes_and_seconds_of_a_hand_worked_update() -> None:
    """Resident: 1000 floats. The update makes 500 and 250 floats, drops the 500, then makes 100: 1750 at most."""
    weight = torch.zeros(1000)

    def update(phase: Phase) -> None:
        with phase("first"):
            a = weight[:500] + 1
            b = a[:250] * 2
        del a
        with phase("second"):
            c = b[:100] + 1
        del b, c

    figures = bytes_of(update, device=CPU, weights=[weight], timeline=True)
    others = figures["resident_bytes"] - 4000  # tensors of other tests
    assert figures["peak_bytes"] - others == 4 * 1750
    assert {name: size - others for name, size in figures["peak_phases"].items()} == {"first": 7000, "second": 5400}
    assert figures["peak_items"]["weights"] == 4000
    assert figures["peak_items"]["activations"] == 3000
    line = figures["timeline"]
    assert max(line["live_bytes"]["activations"]) == 3000
    assert set(line["phases"]) == {"first", "second", ""}
    seconds = seconds_of(update, updates=3, warmup=2, device=CPU)
    assert len(seconds["seconds_all"]) == 3
    assert seconds["seconds_fastest"] <= seconds["seconds_update"] <= max(seconds["seconds_all"])
    assert seconds["seconds_phases"].keys() == {"first", "second"}


def test_a_timeline_keeps_every_stretchs_highest_point() -> None:
    """1300 events over 600 points: stretches of 3. A peak that lasts one event must not be lost."""
    events = [Event(7, "weights", "", "")]
    for number in range(650):
        size = 1000 if number == 333 else 1
        events += [Event(size, "activations", "", "train"), Event(-size, "activations", "", "train")]
    line = timeline_of(events, before=1)
    assert line["events_a_point"] == 3
    assert len(line["phases"]) == 434
    assert max(line["live_bytes"]["activations"]) == 1000
    assert set(line["live_bytes"]["weights"]) == {7}


def test_stretches_of_equal_phases() -> None:
    assert pictures.stretches(["a", "a", "", "b"]) == [(0, 2, "a"), (2, 3, ""), (3, 4, "b")]


@pytest.mark.parametrize("true_largest", [0, 1, 2, 3, 7, 8, 100, 255, 256])
def test_the_search_of_the_largest_batch(true_largest: int) -> None:
    tried: list[int] = []

    def runs(rows: int) -> bool:
        tried.append(rows)
        return rows <= true_largest

    assert largest(runs, 256) == true_largest
    assert max(tried) <= 256
    assert len(tried) == len(set(tried)) <= 17


def test_overlaying_merges_dictionaries_and_replaces_the_rest() -> None:
    base = {"memory": {"a": 1, "b": 2}, "reward": [1, 2], "adapter": None}
    assert overlaid(base, {"memory": {"b": 3}, "reward": [4], "adapter": {"rank": 4}}) == {
        "memory": {"a": 1, "b": 3}, "reward": [4], "adapter": {"rank": 4},
    }  # fmt: skip
    assert base == {"memory": {"a": 1, "b": 2}, "reward": [1, 2], "adapter": None}


@pytest.mark.parametrize("suite", SUITES)
def test_every_case_is_data_and_every_recipe_of_it_is_right(suite: str, tmp_path: Path) -> None:
    cases = SUITES[suite]()
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) > 0
    for case in cases:
        assert case.suite == suite
        assert json.loads(json.dumps(dict(case.settings))) is not None
        if case.measure == "training":
            recipe = case.settings["recipe"]
            if recipe["model"].get("path"):  # made by make bench-peers
                recipe = overlaid(recipe, {"model": {"path": str(tmp_path)}})
            check_recipe(recipe, source=case.name, folder=Path.cwd()).check_world_size(case.ranks)
        elif case.measure in ("plan", "untrained"):
            changed_recipe(case.settings)


def ratio_row(case: str, side: str, seconds: float, peak: int) -> Any:
    method, steps, _ = case.split("/", 2)
    made = row(case, seconds_fastest=seconds, seconds_update=seconds, peak_bytes=peak, peak_items={"weights": 10})
    return made | {"about": {"method": method, "steps": int(steps), "side": side}}


def test_verdicts_need_time_and_peak_of_one_setting() -> None:
    peer = ratio_row("alignprop/10/TRL 0.23.1", "trl", 10.0, 1000)
    small = ratio_row("alignprop/10/memdiff, recomputed, micro-batch 1", "memdiff", 11.0, 400)
    quick = ratio_row("alignprop/10/memdiff, recomputed, micro-batch 4", "memdiff", 10.0, 900)
    both = ratio_row("alignprop/10/memdiff, recomputed, micro-batch 2", "memdiff", 10.5, 600)
    kept = ratio_row("alignprop/10/memdiff, kept, micro-batch 4", "memdiff", 7.6, 5000)
    missed = verdict.peers_table([peer, small, quick])
    assert "**missed**; nearest: memdiff, recomputed, micro-batch 1 (time 1.10, peak 0.40)" in missed
    met = verdict.peers_table([peer, small, quick, both, kept])
    assert "met by memdiff, recomputed, micro-batch 2 (time 1.05, peak 0.60)" in met
    assert "time <= 0.75: **missed**; nearest: memdiff, kept, micro-batch 4 (time 0.76, peak 5.00)" in met


def test_a_peer_that_failed_leaves_no_ratios() -> None:
    failed = ratio_row("ddpo/10/TRL 0.23.1", "trl", 1.0, 1) | {"outcome": "failed", "message": "why", "figures": {}}
    table = verdict.peers_table([failed, ratio_row("ddpo/10/memdiff, micro-batch 1", "memdiff", 1.0, 2**20)])
    assert "failed: why" in table
    assert "| 1.00 | 1.00 | 1.0 | 1.0 |  |  |" in table


def test_tables_are_written_between_their_markers_and_again_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "draw_all", lambda results: None)
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text("before\n" + "".join(f"<!-- table {n} -->\nold\n<!-- end {n} -->\n" for n in tables.TABLES))
    measured = row("reinforce/2", peak_bytes=3 * 2**20, seconds_update=1.5, images_per_second=2.0)
    runner.write_rows(results / "world.jsonl", [measured | {"about": {"method": "reinforce"}, "ranks": 2}])
    tables.write_all(readme, results)
    first = readme.read_text()
    assert first.startswith("before\n")
    assert "old" not in first
    assert "| reinforce | 2 | 3.0 | 1.50 | 2.00 |" in first
    assert f"<!-- table gpu -->\n*{tables.NOTHING}*\n<!-- end gpu -->" in first
    tables.write_all(readme, results)
    assert readme.read_text() == first
    with pytest.raises(ValueError, match="no markers <!-- table x -->"):
        tables.between(first, "x", "")


def test_an_origin_says_what_is_not_clean_and_who_else_was_at_work() -> None:
    clean = tables.origin(row()["provenance"])
    assert "commit abc; torch 2.13.0; a, 2 cores, 2 threads" in clean
    assert "uncommitted" not in clean
    dirty = tables.origin(row(provenance={"clean": False, "busy": 3.0})["provenance"])
    assert "commit abc with uncommitted changes" in dirty
    assert dirty.endswith("a machine that others were using")


def test_every_table_takes_a_row_without_figures() -> None:
    about = {
        "table": "methods", "model": "digits", "method": "draft", "steps": 10, "side": "memdiff", "recipe": "r",
        "setting": "chosen", "series": "kept", "depth": 2,
    }  # fmt: skip
    bad = row("alignprop/10/x", outcome="oom") | {"about": about}
    for name, (_, table) in tables.TABLES.items():
        assert "oom" in table([bad]), name


def test_the_readme_has_all_markers() -> None:
    text = tables.README.read_text()
    for name in tables.TABLES:
        tables.between(text, name, "")


def test_a_tree_with_changes_is_not_clean(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    for folder in ("memdiff", "benchmarks/results"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "memdiff" / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "a")
    facts = of_tree(tmp_path)
    assert facts["clean"] is True
    assert len(facts["commit"]) == 12
    (tmp_path / "benchmarks" / "results" / "cpu.jsonl").write_text("{}")
    (tmp_path / "benchmarks" / "README.md").write_text("a table")
    assert of_tree(tmp_path)["clean"] is True, "results are not what was measured"
    (tmp_path / "memdiff" / "new.py").write_text("2")
    assert of_tree(tmp_path)["clean"] is False
    assert of_tree(tmp_path / "memdiff" / "..")["commit"] == facts["commit"]


def test_the_process_names_its_versions() -> None:
    facts = of_process()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert "trl" not in facts


def test_the_peers_reward_is_the_mean_of_the_pixels() -> None:
    images_BCHW = torch.rand(2, 3, 4, 4, requires_grad=True)
    rewards_B = score(images_BCHW, PROMPTS[:2])
    assert torch.allclose(rewards_B, images_BCHW.reshape(2, -1).mean(dim=1))
    (gradient,) = torch.autograd.grad(rewards_B.sum(), images_BCHW)
    assert torch.allclose(gradient, torch.full_like(gradient, 1 / 48))
