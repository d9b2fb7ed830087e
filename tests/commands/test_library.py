"""memdiff from Python: a function of the program as the reward, the run it leaves, sampling, scoring, mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import memdiff
from memdiff.errors import ConfigError, RewardError
from memdiff.loggers.logger import numbers_of
from memdiff.reporting.rows import read_rows
from memdiff.rewards.handed_over import HERE, hand_over
from tests.helpers.processes import run_python
from tests.helpers.tensorboard_reader import read_events

SCRIPT = """
import json, sys
import memdiff

out = sys.argv[1]
light = sum(module.split(".")[0] == "torch" for module in sys.modules)

def dark(images_BCHW, prompts):
    return -images_BCHW.mean(dim=(1, 2, 3))

changes = {"run.rounds": 1, "run.images_per_round": 4, "sampler.steps": 3, "evaluate.images": 2, "evaluate.every": 1,
           "evaluate.rewards": [], "method.baseline": "none"}
run = memdiff.train("digits_reinforce", dark, out=f"{out}/run", gpus=1, changes=changes)
once = len(run.metrics)
run = memdiff.train("digits_reinforce", dark, out=f"{out}/run", gpus=1, changes=changes | {"run.rounds": 2})
samples = memdiff.sample(run, num_images=3, steps=3, out=f"{out}/samples")
rows = memdiff.score(samples, ["jpeg:quality=90", dark])
sources = {"before": "digits", "after": run}
compared = memdiff.evaluate(sources, ["digits", dark], num_images=3, steps=3, out=f"{out}/eval")
print(json.dumps({
    "light": light, "state": run.state, "once": once, "rows": len(run.metrics), "report": run.report.is_file(),
    "model": (run.model / "model_index.json").is_file(), "grids": sorted(run.images), "samples": len(samples.images),
    "png": samples._repr_png_()[:4].hex(), "scored": [sorted(row) for row in rows],
    "compared": [compared[name][reward]["images"] for name in ("before", "after") for reward in ("digits", "dark")],
    "shown": compared._repr_png_()[:4].hex(), "modes": len({file.stat().st_mode for file in run.folder.rglob("*.*")
                                                             if file.is_file() and "checkpoints" not in file.parts}),
    "rewards": [row["reward/dark"] for row in run.metrics if "reward/dark" in row],
}))
"""


def test_a_function_of_the_program_trains_resumes_samples_and_scores(tmp_path: Path) -> None:
    """One process and no launcher; importing memdiff loads no torch; the second call goes on where the first ended."""
    done = run_python("-c", SCRIPT, str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["light"], result["state"], result["report"], result["model"]) == (0, "complete", True, True)
    assert result["rows"] > result["once"] and result["grids"] == [0, 1, 2]
    assert result["samples"] == 3 and result["png"] == b"\x89PNG".hex()
    assert result["scored"] == [["compressible", "dark", "image", "prompt"]] * 3
    assert result["compared"] == [3] * 4 and result["shown"] == result["png"] and result["modes"] == 1
    assert_logged(tmp_path / "run")
    assert result["rewards"] and all(-1 < reward < 0 for reward in result["rewards"])


def assert_logged(run: Path) -> None:
    """TensorBoard shows what metrics.jsonl holds, in one curve over both starts; events and a card tell of the run."""
    rows, events = read_rows(run / "metrics.jsonl"), read_events(run / "tensorboard")
    assert events.scalars.keys() == {key for row in rows for key in numbers_of(row)} and len(events.scalars) > 15
    for key, curve in events.scalars.items():
        numbers = {row["round"]: numbers_of(row)[key] for row in rows if key in numbers_of(row)}
        assert curve == {step: float(np.float32(value)) for step, value in numbers.items()}, key
    assert [image[0] for image in events.images["samples"]] == [0, 1, 2]
    assert "kind: embedded" in events.texts["recipe"]
    lines = (run / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "complete", "resumed", "complete"]
    assert "| rounds | 2 of 2" in (run / "model" / "README.md").read_text()
    tiles = json.loads((run / "samples" / "round_000002.json").read_text())
    assert len(tiles["prompts"]) == len(tiles["scores"]["dark"]) == 2


@pytest.mark.slow
def test_several_processes_through_the_launcher(tmp_path: Path) -> None:
    """Two ranks, and a second call that goes on where the first ended, to the same bits as one call."""
    (tmp_path / "dark.py").write_text("def score(images, prompts):\n    return -images.mean(dim=(1, 2, 3))\n")
    script = """
import sys, memdiff
out = sys.argv[1]
reward = [{"kind": "python", "file": f"{out}/dark.py"}]
changes = {"run.images_per_round": 4, "sampler.steps": 3, "evaluate.every": 0, "evaluate.rewards": [],
           "method.baseline": "none", "reward": reward}
run = memdiff.train("digits_reinforce", reward, out=f"{out}/run", gpus=2, changes=changes | {"run.rounds": 2})
memdiff.train("digits_reinforce", reward, out=f"{out}/one", gpus=2, changes=changes | {"run.rounds": 1})
memdiff.train("digits_reinforce", reward, out=f"{out}/one", gpus=2, changes=changes | {"run.rounds": 2})
print(run.state, len(run.metrics))
"""
    done = run_python("-c", script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "complete 2"
    file = "model/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_a_recipe_from_a_name_a_mapping_and_a_recipe() -> None:
    named = memdiff.read_recipe("digits_ddpo", {"run.rounds": 3, "reward.0.weight": 2.0})
    assert named.run.rounds == 3 and named.reward[0].weight == 2.0
    assert memdiff.read_recipe(named.model_dump(mode="json")) == memdiff.read_recipe(named) == named
    assert memdiff.read_recipe(named, {"run.rounds": 4}).run.rounds == 4 and named.run.rounds == 3
    with pytest.raises(ConfigError, match=r"unknown key run\.roundz; did you mean rounds"):
        memdiff.read_recipe("digits_ddpo", {"run.roundz": 3})


def test_score_takes_functions_and_parts_as_a_recipe_has_them(tmp_path: Path) -> None:
    """One by itself or several: a function by its own name, a part by its kind's."""
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")

    def redness(images_BCHW, prompts):
        return images_BCHW[:, 0].mean(dim=(1, 2))

    (row,) = memdiff.score(tmp_path, redness)
    assert row["redness"] == 1.0
    part = {"kind": "jpeg", "quality": 90}
    assert memdiff.score(tmp_path, part)[0].keys() == memdiff.score(tmp_path, "jpeg:quality=90")[0].keys()
    assert {"redness", "compressible"} <= memdiff.score(tmp_path, [part, redness])[0].keys()


def test_what_a_function_of_a_program_can_not_do() -> None:
    """Reach other processes, or be there in another program."""

    def dark(images: object, prompts: object) -> object:
        return images

    with pytest.raises(ConfigError, match="reaches no 2 processes; put it into a file"):
        memdiff.train("digits_reinforce", dark, gpus=2)
    recipe = memdiff.read_recipe("digits_ddpo", {"reward": [{"kind": "python", "file": HERE, "function": "gone"}]})
    from memdiff.rewards.build import build_reward
    from tests.helpers.tiny import CPU

    with pytest.raises(ConfigError, match="gone was handed over by a Python program and is not here"):
        build_reward(recipe.reward[0], device=CPU)
    handed = memdiff.read_recipe("digits_ddpo", {"reward": [hand_over(lambda images, prompts: 1 / 0)]}).reward[0]
    nameless = build_reward(handed, device=CPU)
    with pytest.raises(RewardError, match="reward lambda of this program raised ZeroDivisionError"):
        nameless(torch.zeros(1, 1, 2, 2), [""])
    with pytest.raises(TypeError, match="has no option guidence"):
        memdiff.sample("digits", guidence=2.0)


def test_libraries_give_no_advice_while_they_are_imported() -> None:
    """bitsandbytes does on processors of one kind alone, so that its logger is looked at, in the place of its words."""
    code = (
        "import logging, os, sys, memdiff; memdiff.read_recipe('digits_ddpo'); "
        "print(*sorted({'torch', 'bitsandbytes'} & set(sys.modules)), os.environ['TRANSFORMERS_VERBOSITY'], "
        "logging.getLogger('bitsandbytes.backends.cpu.ops').isEnabledFor(logging.WARNING))"
    )
    assert run_python("-c", code).stdout.split() == ["error", "False"]


def test_no_name_of_the_library_is_a_rooms() -> None:
    """`memdiff.train` is a function whatever has been imported."""
    rooms = {path.name for path in Path(memdiff.__file__).parent.iterdir() if path.is_dir()}
    assert not set(memdiff.__all__) & rooms and all(hasattr(memdiff, name) for name in memdiff.__all__)
