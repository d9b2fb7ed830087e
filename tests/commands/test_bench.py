"""`memdiff bench`: the block's text from closed inputs, parts that fail, and the real command on two CPU ranks."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from memdiff.bench import command
from memdiff.bench.block import BenchBlock, ParityRow, RecipeRow
from memdiff.bench.cases import EVERYTHING_STAYS, PARITY_CHANGES, PARITY_RECIPE, RecipeCase, cases_for, world_sizes
from memdiff.bench.children import last_words, run_module
from memdiff.bench.command import Bench, machine_of, measure
from memdiff.bench.parity import distance, second_round, words
from memdiff.doctor.devices import Device, DeviceFacts
from memdiff.doctor.table import Finding
from memdiff.engine.moments import first_moments
from memdiff.errors import CheckpointError, MemdiffError, StopRequested
from memdiff.recipe.reading import check_recipe, laid_over, read_recipe, read_recipe_data
from memdiff.training.launcher import rank_environment
from tests.helpers.processes import ROOT, ended, memdiff

GIB = 2**30
T4 = Device("Tesla T4", 15 * GIB, (7, 5))
ROW = RecipeRow(
    recipe="sd15_alignprop_t4", weights="random", images=4, steps=20, precision="fp16", planned_live=10 * GIB,
    planned_peak=11 * GIB, measured_live=int(9.5 * GIB), measured_reserved=int(10.75 * GIB), estimated_seconds=40.0,
    measured_seconds=32.0, knobs={"micro_batch": 2},
)  # fmt: skip
PARITY = [ParityRow(1, "NCCL", 2.0, None), ParityRow(2, "NCCL", 1.25, 3.1e-7)]


def block(**changes) -> BenchBlock:
    """Two cards that were measured."""
    versions = {"memdiff": "0.1.0", "commit": None, "torch": "2.11.0+cu130"}
    values = {"machine": "2 x T4", "recipes": [ROW], "parity": PARITY, "parity_recipe": "digits", **changes}
    return BenchBlock(versions, **values)


def test_the_block_word_for_word():
    """The whole text, each figure worked out by hand: 9.5 / 10 of the plan; 32 s over 4 x 20 image-steps are 400 ms."""
    expected = """\
### memdiff bench
- machine: 2 x T4
- versions: memdiff 0.1.0, torch 2.11.0+cu130
- one GPU is small
- doctor: warn: hub: no answer
- **failed**: sdxl_draft_t4: planned, and does not fit

Plan and peak on one rank, GiB:

| recipe | weights | images x steps | precision | live, planned | live, measured | measured / planned | \
with allowance, planned | reserved, measured | s a round, estimated | measured | ms an image-step |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| sd15_alignprop_t4 | random | 4 x 20 | fp16 | 10.00 | 9.50 | 0.950 | 11.00 | 10.75 | 40.0 | 32.0 | 400 |

One rank and several, digits, fp32:

| ranks | backend | s a round | gradient's distance to one rank's |  |
| --- | --- | --- | --- | --- |
| 1 | NCCL | 2.00 | - | what the others are held to |
| 2 | NCCL | 1.25 | 3.1e-07 | same |
"""
    failures = ["sdxl_draft_t4: planned, and does not fit"]
    measured = block(notes=["one GPU is small"], doctor=["warn: hub: no answer"], failures=failures)
    assert measured.markdown() == expected


def test_a_gradient_that_differs_is_said_and_counts():
    """2e-5 relative is beyond what ranks may change; a block is well where all parts are there and ranks agree."""
    apart = ParityRow(4, "NCCL", 1.0, 2e-5)
    assert "DIFFERS by more than 1e-05" in block(parity=[*PARITY, apart]).markdown()
    assert block().is_well and not block(parity=[apart]).is_well and not block(failures=["x"]).is_well


def test_text_from_elsewhere_breaks_no_table():
    """A card's name or an error with a bar, a line break or a terminal's sequence stays in its cell."""
    row = RecipeRow(**{**asdict(ROW), "recipe": "a|b\nc\x1b[2J"})
    line = next(line for line in block(recipes=[row]).markdown().splitlines() if line.startswith("| a/b"))
    assert line.count("|") == 13 and "\x1b" not in line


def test_json_is_the_same_rows(tmp_path: Path):
    """Bytes as bytes; rows can be made of it again."""
    block().write(tmp_path)
    read = json.loads((tmp_path / "bench.json").read_text())
    assert RecipeRow(**read["recipes"][0]) == ROW and [ParityRow(**row) for row in read["parity"]] == PARITY
    assert (tmp_path / "bench.md").read_text() == block().markdown() and read["is_well"] is True


def test_cases_follow_the_machine():
    """SDXL where card and host hold it; celebahq in its place, which is said; the embedded models without a card.

    All of them are recipes that ship, and right as they are changed."""
    t4, small = [15 * GIB], [8 * GIB]
    names = [[case.recipe for case in cases_for(cards, 30 * GIB)] for cards in ([], small, t4)]
    assert names[2] == ["sd15_alignprop_t4", "sd15_ddpo_t4", "sdxl_draft_t4"]
    assert names[1][2] == "celebahq_reinforce" and names[0] == ["digits_text_alignprop", "digits_reinforce"]
    assert cases_for(t4, 13 * GIB)[2].recipe == "sdxl_draft_t4"  # random weights are made on the card
    assert cases_for(t4, 6 * GIB)[2].note.startswith("celebahq_reinforce in the place of SDXL")
    for case in [*cases_for([], 0), *cases_for(t4, 30 * GIB), *cases_for(small, 0)]:
        raw, file = read_recipe_data(Path(case.recipe))
        assert check_recipe(laid_over(raw, case.changes), source="x", folder=file.parent).run.rounds == 2
    changes = [word for word in words(2, Path("x")) if "=" in word]
    recipe = read_recipe(Path(PARITY_RECIPE), changes)
    assert recipe.memory.micro_batch == 2 and recipe.run.images_per_round % 8 == 0 and recipe.model.precision == "fp32"
    assert len(changes) == len(PARITY_CHANGES)


@pytest.mark.parametrize(
    ("cards", "gpus", "sizes"),
    [(0, None, [1, 2]), (1, None, [1]), (2, None, [1, 2]), (3, None, [1, 2, 3]), (8, None, [1, 2, 4]), (4, 2, [1, 2])],
)
def test_world_sizes(cards: int, gpus: int | None, sizes: list[int]):
    assert world_sizes(cards, gpus) == sizes


def test_parity_figures():
    """Phases of the second round alone; the distance is the whole vector's, relative to one rank's."""
    row = {"seconds_rollout": 1.0, "seconds_reward": 0.25, "seconds_train": 2.0}
    assert second_round([dict.fromkeys(row, 9.0), row]) == 3.25
    assert distance(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_machine_of_cards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "driver", lambda: "570.1")
    facts = DeviceFacts(devices=[T4, T4], torch_cuda="13.0")
    assert machine_of(facts) == "2 x Tesla T4 (15.0 GiB, sm_75), driver 570.1, CUDA 13.0"


def test_last_words(tmp_path: Path):
    """Our own line wherever it stands; else the end of a traceback; a kill is named."""
    log = tmp_path / "log"
    log.write_text("noise\nmemdiff: error[7]: no memory\nKeyError: 1\n")
    assert last_words(log, 7) == "no memory"
    log.write_text("Traceback\n  File x\ntorch.OutOfMemoryError: 3 GiB\nsome more\n")
    assert last_words(log, 1).startswith("torch.OutOfMemoryError: 3 GiB (exit code 1")
    assert "host's memory" in last_words(log, -9)


def test_a_program_that_fails_is_a_line(tmp_path: Path):
    with pytest.raises(MemdiffError, match=r"No module named memdiff\.no_such"):
        run_module("memdiff.no_such", environment={"PYTHONPATH": str(ROOT)}, log=tmp_path / "log")


def test_first_moments_of_all_ranks(tmp_path: Path):
    """Two groups over eleven ranks: group by group, ranks in the order of their numbers, the last one's padding cut
    off. A folder without shards is told in one line."""
    (tmp_path / "engine").mkdir()
    for rank in range(11):
        padding = [1, 0] if rank == 10 else [0, 0]
        state = {group: {"exp_avg": torch.tensor([rank + 0.5, 9.0]) + 100 * group} for group in (0, 1)}
        shard = {"optimizer_state_dict": {"base_optimizer_state": {"state": state}, "group_paddings": padding}}
        torch.save(shard, tmp_path / f"engine/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    moments = first_moments(tmp_path)
    assert moments.dtype == torch.float64 and len(moments) == 43
    assert moments[:21:2].tolist() == [rank + 0.5 for rank in range(11)] and moments[21:23].tolist() == [100.5, 109.0]
    with pytest.raises(CheckpointError, match="holds no optimizer state"):
        first_moments(tmp_path / "engine")


class Interrupted(Bench):
    """Parts that fail, then one in which Ctrl-C comes; every line that is said is kept."""

    def doctor(self) -> DeviceFacts:
        return DeviceFacts(devices=[T4], torch_cuda="13.0")

    def recipe(self, case: RecipeCase) -> None:
        if case.recipe == "sd15_alignprop_t4":
            raise MemdiffError("no such thing")
        if case.recipe == "sd15_ddpo_t4":
            self.block.recipes.append(ROW)
            return
        raise KeyboardInterrupt


def test_a_failing_part_is_a_line_and_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The first recipe fails, the second is measured, Ctrl-C comes in the third: the file holds a failure, a row, and
    that it was stopped; and the block is printed."""
    monkeypatch.setattr(command, "Bench", Interrupted)
    with pytest.raises(StopRequested, match="what was measured is in"):
        command.bench(tmp_path / "out")
    text = (tmp_path / "out" / "bench.md").read_text()
    assert "**failed**: sd15_alignprop_t4: no such thing" in text and "| random | 4 x 20 |" in text
    assert "stopped on request" in text and "One rank and several" not in text
    assert text in capsys.readouterr().out


def test_the_doctors_failures_are_parts_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every line that is not well is in the block, and the rest goes on."""
    findings = [
        Finding("compiler", "fail", "no C++ compiler"),
        Finding("hub", "warn", "off"),
        Finding("disk", "ok", ""),
    ]
    monkeypatch.setattr(command, "look", lambda: (findings, DeviceFacts()))
    monkeypatch.setattr(Bench, "recipe", lambda self, case: None)
    monkeypatch.setattr(Bench, "parity", lambda self, sizes, backend: self.block.notes.append(f"{sizes} {backend}"))
    bench = Bench(tmp_path, say=lambda line: None)
    measure(bench, None)
    assert bench.block.failures == ["doctor: compiler"]
    assert bench.block.doctor == ["fail: compiler: no C++ compiler", "warn: hub: off"]
    assert bench.block.notes[0] == "no GPU: the embedded model" and bench.block.notes[-1] == "[1, 2] gloo"


@pytest.mark.slow
def test_bench_on_this_machines_cpu(tmp_path: Path):
    """The command as a user has it: both embedded recipes and two ranks have their rows; gradients agree; every live
    tensor of the process is at least what the plan counts, and not twice as much."""
    done = memdiff("bench", "--out", tmp_path / "out", cwd=tmp_path)
    read = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:], read["failures"])
    assert "no GPU: the embedded model" in done.stdout and (tmp_path / "out" / "bench.md").read_text() in done.stdout
    assert [row["recipe"] for row in read["recipes"]] == ["digits_text_alignprop", "digits_reinforce"]
    for row in read["recipes"]:
        assert row["weights"] == "embedded" and 0.97 < row["measured_live"] / row["planned_live"] < 2
    assert [row["ranks"] for row in read["parity"]] == [1, 2]
    assert 0 < read["parity"][1]["distance"] < 1e-5


@pytest.mark.slow
def test_random_weights_stand_in_for_those_that_are_not_here(tmp_path: Path):
    """A public model with a hub's cache that is empty: the same architecture with random weights is planned and run.

    The plan, which is made on fake tensors, is what lives in the process to a tenth."""
    recipe, result = tmp_path / "cifar.yaml", tmp_path / "row.json"
    recipe.write_text(
        "model: {kind: ddpm, path: google/ddpm-cifar10-32, precision: fp32}\nadapter: {rank: 2}\n"
        "sampler: {steps: 2, eta: 1.0}\nmethod: {kind: reinforce}\nreward: [{kind: jpeg}]\n"
        "optimizer: {learning_rate: 1.0e-4}\n"
    )
    changes = {"run.images_per_round": 2, "run.rounds": 2, "evaluate.every": 0, "memory": dict(EVERYTHING_STAYS)}
    environment = {
        **rank_environment(1), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")
    }  # fmt: skip
    words_of_it = (str(recipe), json.dumps(changes), str(result))
    run_module("memdiff.bench.one_recipe", *words_of_it, environment=environment, log=tmp_path / "log")
    row = RecipeRow(**json.loads(result.read_text()))
    assert (row.weights, row.precision, row.images, row.steps) == ("random", "fp32", 2, 2)
    assert row.measured_reserved is None and 0.9 < row.measured_live / row.planned_live < 1.1


@pytest.mark.slow
def test_ctrl_c_leaves_no_program_behind(tmp_path: Path):
    """SIGINT while a part runs: exit code 75, one line, files that say it."""
    words_of_it = [sys.executable, "-m", "memdiff", "bench", "--out", "out"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    process = subprocess.Popen(
        words_of_it, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    with ended(process):
        assert process.stdout is not None
        for line in process.stdout:
            if "planning" in line:
                process.send_signal(signal.SIGINT)
                break
        rest, errors = process.communicate()
    assert process.returncode == 75 and "what was measured is in out" in errors
    assert "stopped on request" in (tmp_path / "out" / "bench.md").read_text() and "### memdiff bench" in rest
