"""Runs cases one after the other in one process, a rank of one or of several, and writes what they gave as JSON.

    python -m benchmarks.recorder.worker JOB.json RESULT.json

`processes` starts it. A case's values don't depend on those before it: every run builds all its parts anew.
"""

import gc
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.recorder import adapter, kept, models
from benchmarks.recorder.case import Case, Composition, Resuming, Sampling, Training, overlaid
from benchmarks.recorder.cases import BASES, CASES
from benchmarks.recorder.summary import of_pictures, of_tensors, of_weights

UNEQUAL = ("seconds_", "peak_bytes")  # what may differ between two runs of one recipe


def values_of(case: Case, scratch: Path, kept_folder: Path) -> dict[str, Any]:
    """What is recorded of a case. `scratch` is empty, or on the first of several ranks' way to be used."""
    match case:
        case Training():
            return _trained(case, scratch)
        case Composition():
            recipe = overlaid(BASES[case.base], case.changes)
            return adapter.composed_and_whole(recipe, case.knobs, case.precision)
        case Sampling():
            words = [word.replace("KEPT", str(kept_folder)) for word in case.words]
            adapter.run(["sample", *words, "--out", str(scratch)])
            return {"images": of_pictures(sorted(scratch.glob("image_*.png")))}
        case Resuming():
            run = scratch / case.run
            shutil.copytree(kept_folder / case.run, run)
            words = ["train", str(run / "config.yaml"), "--out", str(run), "--resume", "must"]
            return _run(scratch, [*words, "--set", f"run.rounds={case.rounds}"], run)


def recipe_of(case: Training, tiny_models: Path) -> dict[str, Any]:
    """Whole, with the folder of the tiny models in it."""
    recipe = overlaid(BASES[case.base], case.changes)
    path = recipe["model"].get("path", "").replace("TINY_MODELS", str(tiny_models))
    return {**recipe, "model": {**recipe["model"], **({"path": path} if path else {})}}


def _trained(case: Training, scratch: Path) -> dict[str, Any]:
    file = scratch / f"recipe_{os.environ['RANK']}.yaml"
    file.write_text(yaml.safe_dump(recipe_of(case, _tiny_models(scratch.parent))))
    with adapter.in_half() if case.half else nullcontext():
        return _run(scratch, ["train", str(file), "--out", str(scratch / "run")], scratch / "run")


def _run(scratch: Path, words: list[str], run: Path) -> dict[str, Any]:
    seen = adapter.Seen()
    with adapter.watched(seen):
        adapter.run(words)
    mine: dict[str, Any] = {
        "start": of_tensors(seen.start),
        "x_0": of_tensors(seen.x_0),
        "gradients": [of_tensors(sums) for sums in seen.gradients],
        "advantages": [of_tensors([each]) for each in seen.advantages],
        "eligibilities": [of_tensors(each) for each in seen.eligibilities],
    }
    everything = mine | (_left(run) if _is_first() else {})
    return {key: value for key, value in everything.items() if value}


def _left(run: Path) -> dict[str, Any]:
    """What a run leaves on the disk."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = max((run / "checkpoints").glob("round_*[0-9]"))
    state: Mapping[str, Any] = json.loads((last / "state.json").read_text())
    return {
        "weights": of_weights(run / "model"),
        "best": of_weights(run / "model_best"),
        "rows": [{key: value for key, value in row.items() if not key.startswith(UNEQUAL)} for row in rows],
        "state": state,
        "evaluations": [of_pictures([file]) for file in sorted((run / "samples").glob("round_*.png"))],
        "files": sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() and _is_ours(file)),
    }


def _is_ours(file: Path) -> bool:
    """Not DeepSpeed's, of which there are many, nor a picture, nor TensorBoard's, whose names hold the time."""
    return not {"checkpoints", "samples", "tensorboard"} & set(file.parts)


def _is_first() -> bool:
    return os.environ["RANK"] == "0"


def _tiny_models(scratch: Path) -> Path:
    """Each rank's own: none has to wait for another."""
    return scratch / f"tiny_models_{os.environ['RANK']}"


def _needs_tiny_models(case: Case) -> bool:
    return isinstance(case, Training) and "path" in BASES[case.base]["model"]


def main() -> None:
    """Every case of the job that this process has a part in; where one fails its traceback is its value."""
    job, result = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    scratch, kept_folder = Path(job["scratch"]), Path(job["kept"])
    torch.set_num_threads(1)
    if job.get("make_kept"):
        kept.make(kept_folder, scratch)
    named, outcomes = {case.name: case for case in CASES}, {}
    if any(_needs_tiny_models(named[name]) for name in job["cases"]):
        models.write_models(_tiny_models(scratch))
    for name in job["cases"]:
        folder, begun = scratch / name.replace("/", "_"), time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            values = values_of(named[name], folder, kept_folder)
        except Exception:
            if named[name].ranks > 1:
                raise  # the others would wait for this one
            values = {"failed": traceback.format_exc()}
        outcomes[name] = {"seconds": round(time.monotonic() - begun, 2), "values": values}
        result.write_text(json.dumps(outcomes))
        if _is_first():
            shutil.rmtree(folder, ignore_errors=True)
        gc.collect()


if __name__ == "__main__":
    main()
