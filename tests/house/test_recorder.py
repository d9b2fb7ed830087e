"""The recorder of today's numbers: what it takes down comes again bit for bit, and one value that moved is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recorder import compare
from benchmarks.recorder.__main__ import KEPT, RECORD, main
from benchmarks.recorder.cases import CASES, PLANNED_BY_DEFAULT

CHEAP = ("reinforce/lora_one_pass", "kept/sample_ddpm")


@pytest.fixture(scope="module")
def current_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of the cheap cases by today's code."""
    folder = tmp_path_factory.mktemp("recorder") / "record"
    shutil.copytree(RECORD / KEPT, folder / KEPT)
    assert main(["write", str(folder), *[word for name in CHEAP for word in ("--case", name)]]) == 0
    return folder


def test_cheap_cases_are_as_recorded(current_record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit where libraries and processor are the record's, else close."""
    code = main(["compare", str(RECORD), str(current_record)])
    assert code == 0, capsys.readouterr().out


def _moved(value: Any) -> Any:
    """A gradient's checksum and norm, as after a change of its bits."""
    return {**value, "sha256": "0" * 24, "norm": value["norm"] * 1.01}


def test_every_value_that_moved_is_told_at_once(
    current_record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One gradient and one row's number: exit 1, both named with their case, and no other."""
    changed = tmp_path / "record"
    shutil.copytree(current_record, changed)
    values = compare.read_cases(changed)
    one = values["reinforce/lora_one_pass"]
    one["gradients"][1] = _moved(one["gradients"][1])
    one["rows"][0]["reward_mean"] += 0.01
    compare.write_cases(changed, values, order=[case.name for case in CASES])
    assert main(["compare", str(changed), str(current_record)]) == 1
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.partition(": stored")[0] for line in lines[:-1]] == [
        "reinforce/lora_one_pass: gradients[1]",
        "reinforce/lora_one_pass: rows[0].reward_mean",
    ]
    assert lines[-1].startswith("2 cases, 1 as in the record of commit") and lines[-1].endswith("1 not")


def test_elsewhere_numbers_are_compared_and_it_says_so(
    current_record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another torch: checksums may differ, numbers a hundredth apart may not; `--exact` asks for checksums again."""
    changed = tmp_path / "record"
    shutil.copytree(current_record, changed)
    environment = json.loads((changed / compare.ENVIRONMENT).read_text())
    environment["packages"]["torch"] = "2.99.0"
    (changed / compare.ENVIRONMENT).write_text(json.dumps(environment))
    values = compare.read_cases(changed)
    weights = next(iter(values["reinforce/lora_one_pass"]["weights"].values()))
    weights["sha256"] = "0" * 24
    compare.write_cases(changed, values, order=[case.name for case in CASES])
    assert main(["compare", str(changed), str(current_record)]) == 0
    assert "torch" in capsys.readouterr().out
    assert main(["compare", str(changed), str(current_record), "--exact"]) == 1
    weights["norm"] *= 1.01
    compare.write_cases(changed, values, order=[case.name for case in CASES])
    assert main(["compare", str(changed), str(current_record)]) == 1


def test_the_record_holds_every_case() -> None:
    """And the plans that are checked by default; together below a megabyte."""
    every = {case.name for case in CASES} | {f"plan/{name}" for name in PLANNED_BY_DEFAULT}
    assert every - compare.read_cases(RECORD).keys() == set()
    assert sum(file.stat().st_size for file in RECORD.rglob("*") if file.is_file()) < 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_cases_are_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    """Minutes: every run, composition, sampling and resuming."""
    code = main(["check"])
    assert code == 0, capsys.readouterr().out
