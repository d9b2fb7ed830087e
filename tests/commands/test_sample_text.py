"""`memdiff sample` of text models and adapters: prompts, scales, mixtures, windows, the same images on any ranks."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from memdiff.errors import ConfigError
from memdiff.models.config import EmbeddedConfig
from memdiff.models.load import load_policy
from memdiff.models.options import ModelOptions
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from memdiff.sampling.processes import grid_of, sample_over_processes
from memdiff.sampling.request import SampleRequest, make_request
from memdiff.training.run_folder import RunFolder
from tests.helpers.processes import memdiff

quiet_libraries()
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TEXTS = ["a three", "seven", "a thin nine"]
STEPS = 3
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"adapter": {"rank": 2, "alpha": 8}},
    "digits_text": {"adapter": {"rank": 2, "alpha": 8}, "prompts": TEXTS},
}


def make_run(folder: Path, name: str, seed: int = 0, **sections: Any) -> Path:
    """A run folder as training leaves it, with random weights in its adapter (or the untouched base, saved whole)."""
    guidance = {"guidance": 2.0} if name == "digits_text" else {}
    content = {
        "model": {"kind": "embedded", "name": name},
        "sampler": {"steps": STEPS, "eta": 1.0, **guidance},
        "method": {"kind": "reinforce"},
        "reward": [{"kind": "digits", "mode": "probability"}],
        **RECIPES[name],
        **sections,
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    recipe = RunFolder(folder).recipe()
    torch.manual_seed(0)
    policy = load_policy(recipe.model, recipe.sampler, ModelOptions(adapter=recipe.adapter), device=CPU)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values() if recipe.adapter else ():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    policy.save(folder / "model", {key: value.detach().clone() for key, value in policy.trainable().items()})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a and b: unconditional LoRA runs. text: one of the text model. whole: a run that trained everything."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", "digits", 1)
    make_run(folder / "b", "digits", 2, adapter={"rank": 3, "convolutions": True})
    make_run(folder / "text", "digits_text", 3)
    make_run(folder / "whole", "digits", adapter=None)
    return folder


def request(source: object, out: Path | None = None, **options: Any) -> SampleRequest:
    """What the command line makes of these options; four images in batches of four."""
    defaults: dict[str, Any] = {
        "best": False, "num_images": 4, "batch_size": 4, "steps": None, "eta": None, "guidance": None, "seed": 5,
        "prompt": None, "prompts": None, "lora_scale": None, "mix": (), "adapter_steps": None, "precision": "fp32",
    }  # fmt: skip
    return make_request(str(source), out=out, **(defaults | options))


def sampled(source: object, out: Path, **options: Any) -> np.ndarray:
    """N H W (C) uint8."""
    folder = sample_over_processes(request(source, out, **options), gpus=1)
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("image_*.png"))])


def test_scale_one_is_the_run_and_zero_its_base(runs: Path, tmp_path: Path) -> None:
    """Bit for bit the base at 0; at 1 what the run's merged pipeline makes, to rounding; in between, something else."""
    base = sampled("digits", tmp_path / "base", steps=STEPS)
    assert np.array_equal(sampled(runs / "a", tmp_path / "0", lora_scale=0.0), base)
    own = sampled(runs / "a", tmp_path / "own")
    assert np.array_equal(sampled(runs / "a", tmp_path / "1", lora_scale=1.0), own)
    merged = sampled(runs / "a" / "model", tmp_path / "merged", steps=STEPS)
    assert np.abs(merged.astype(int) - own.astype(int)).max() <= 1
    half = sampled(runs / "a", tmp_path / "half", lora_scale=0.5)
    assert len({base.tobytes(), own.tobytes(), half.tobytes()}) == 3


def test_mixtures(runs: Path, tmp_path: Path) -> None:
    """A run named with weight 1 is that run; two runs in either order are the same; their own adapter is not added."""
    a, b = runs / "a", runs / "b" / "model" / "adapter"
    own = sampled(a, tmp_path / "own")
    for number, source in enumerate(("digits", a, runs / "b")):
        assert np.array_equal(sampled(source, tmp_path / f"{number}", steps=STEPS, mix=[f"{a}=1"]), own)
    both = sampled("digits", tmp_path / "ab", steps=STEPS, mix=[f"{a}=0.5", f"{b}=0.5"])
    other = sampled("digits", tmp_path / "ba", steps=STEPS, mix=[f"{b}=0.5", f"{a}=0.5"])
    assert np.abs(both.astype(int) - other.astype(int)).max() <= 1
    assert np.abs(both.astype(int) - own.astype(int)).max() > 8
    scaled = sampled("digits", tmp_path / "scaled", steps=STEPS, mix=[f"{a}=1", f"{b}=1"], lora_scale=0.5)
    assert np.array_equal(scaled, both)
    settings = json.loads((tmp_path / "scaled" / "settings.json").read_text())
    assert [adapter["weight"] for adapter in settings["adapters"]] == [1.0, 1.0] and settings["lora_scale"] == 0.5
    assert all(Path(adapter["file"]).is_file() for adapter in settings["adapters"])


def test_windows(runs: Path, tmp_path: Path) -> None:
    """All steps: as without. A run that was trained in a window is sampled in it, and can be sampled in another."""
    own = sampled(runs / "a", tmp_path / "own")
    assert np.array_equal(sampled(runs / "a", tmp_path / "all", adapter_steps=f"0:{STEPS}"), own)
    first = sampled(runs / "a", tmp_path / "first", adapter_steps="0:1")
    assert not np.array_equal(first, own)
    windowed = make_run(tmp_path / "run", "digits", 1, adapter={"rank": 2, "alpha": 8, "steps": [0, 1]})
    assert np.array_equal(sampled(windowed, tmp_path / "windowed"), first)
    assert np.array_equal(sampled(windowed, tmp_path / "wide", adapter_steps=f"0:{STEPS}"), own)
    with pytest.raises(ConfigError, match=f"acts in steps 0:1 of {STEPS}, and this chain has 4"):
        sampled(windowed, tmp_path / "longer", steps=4)


def test_prompts_go_round(runs: Path, tmp_path: Path) -> None:
    """Image i has prompt i mod P: the same image as with that prompt for all. A run knows its prompts and guidance."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    own = sampled(runs / "text", tmp_path / "own")
    for name in ("texts.txt", "texts.jsonl"):
        assert np.array_equal(sampled(runs / "text", tmp_path / "file", prompts=tmp_path / name), own)
    for number, text in enumerate(TEXTS):
        alone = sampled(runs / "text", tmp_path / "alone", prompt=text)
        same = [np.array_equal(alone[image], own[image]) for image in range(4)]
        assert same == [image % 3 == number for image in range(4)]
    settings = json.loads((tmp_path / "own" / "settings.json").read_text())
    assert settings["prompts"] == TEXTS and settings["sampler"]["guidance"] == 2.0
    model = {"kind": "embedded", "name": "digits_text", "precision": "auto", "channels_last": False}
    assert settings["model"] == model
    assert not np.array_equal(sampled(runs / "text", tmp_path / "guided", guidance=5.0), own)
    assert not np.array_equal(sampled(runs / "text", tmp_path / "base", lora_scale=0.0), own)
    with Image.open(tmp_path / "own" / "grid.png") as grid:
        tile = (grid.width + 2) // 4 - 2
        assert tile >= 112 and grid.height > tile + 10  # four in a row, their prompts below
    files = sorted((tmp_path / "own").glob("image_*.png")) * 2
    assert grid_of(files[:7], (TEXTS * 3)[:7]).width == 6 * tile + 5 * 2  # a prompt keeps to its columns


def test_embedded_text_model_by_name(tmp_path: Path) -> None:
    """`digits_text` needs no run: guidance 7.5 where nothing is said."""
    made = request("digits_text", tmp_path, prompt="three")
    assert made.model == EmbeddedConfig(kind="embedded", name="digits_text")
    assert made.sampler == SamplerConfig(guidance=7.5) and made.prompts == ("three",) and made.adapters == ()


def test_the_best_weights_of_a_run(runs: Path, tmp_path: Path) -> None:
    """--best takes model_best, with its own adapter."""
    shutil.copytree(runs / "a", tmp_path / "run")
    with pytest.raises(ConfigError, match="holds no model_best yet"):
        request(tmp_path / "run", best=True)
    shutil.copytree(runs / "b" / "model", tmp_path / "run" / "model_best")
    assert "model_best" in request(tmp_path / "run", best=True).adapters[0].file
    with pytest.raises(ConfigError, match=r"--mix .*model_best=1"):
        request(tmp_path / "run", best=True, mix=[f"{runs / 'a'}=1"])


def test_ranks_change_nothing(runs: Path, tmp_path: Path) -> None:
    """The real command on two processes: the bytes of one process, prompts and adapters included."""
    options = ("--num-images", 5, "--batch-size", 2, "--lora-scale", 0.7, "--seed", 5, "--precision", "fp32")
    done = memdiff("sample", runs / "text", *options, "--gpus", 2, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    two = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "two").glob("image_*.png"))])
    one = sampled(runs / "text", tmp_path / "one", num_images=5, batch_size=2, lora_scale=0.7)
    assert np.array_equal(two, one) and len(one) == 5


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("digits", {"prompt": "three"}, "digits makes images without prompts"),
    ("digits", {"guidance": 3.0}, "--guidance needs a text-to-image model"),
    ("digits_text", {}, "give --prompt TEXT or --prompts FILE"),
    ("digits_text", {"prompt": "a", "prompts": Path("b")}, "can't be given together"),
    ("digits_text", {"prompts": Path("EMPTY")}, "holds no prompt"),
    ("digits_text", {"prompts": Path("BINARY")}, "is not a text file"),
    ("digits_text", {"prompts": Path("MISSING")}, "no such prompt file"),
    ("digits", {"lora_scale": 0.5}, "--lora-scale needs an adapter, and digits is an embedded model without one"),
    ("digits", {"adapter_steps": "0:1"}, "--adapter-steps needs an adapter"),
    ("WHOLE", {"lora_scale": 0.5}, "was trained in full and has no adapter"),
    ("A", {"lora_scale": float("nan")}, "lora_scale: Input should be a finite number"),
    ("A", {"mix": ["somewhere"]}, "--mix must be DIR=W"),
    ("A", {"mix": ["=1"]}, "--mix must be DIR=W"),
    ("A", {"mix": ["A=much"]}, "the weight must be a number, such as 0.5, got 'much'"),
    ("A", {"mix": ["A=inf"]}, "the weight must be a number"),
    ("A", {"mix": ["/nowhere=1"]}, "no such adapter file or folder: /nowhere"),
    ("A", {"mix": ["WHOLE=1"]}, "give a run with LoRA"),
    ("A", {"adapter_steps": "2"}, "--adapter-steps must be START:END"),
    ("A", {"adapter_steps": "2:2"}, "--adapter-steps must be START:END with START < END"),
    ("A", {"adapter_steps": "0:9"}, f"--adapter-steps must end at the chain's {STEPS} steps or before, got 0:9"),
    ("A", {"prompt": "three"}, "makes images without prompts"),
    ("TEXT", {"mix": ["A=1"]}, "belongs to another network"),
]


@pytest.mark.parametrize(("source", "options", "message"), MISTAKES, ids=[mistake[2] for mistake in MISTAKES])
def test_mistakes_are_told(source: str, options: dict[str, Any], message: str, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    places = {
        "A": runs / "a", "WHOLE": runs / "whole", "TEXT": runs / "text", "EMPTY": tmp_path / "empty.txt",
        "BINARY": tmp_path / "binary.txt", "MISSING": tmp_path / "missing.txt",
    }  # fmt: skip
    arguments = dict(options)
    if "prompts" in arguments:
        arguments["prompts"] = places.get(str(arguments["prompts"]), arguments["prompts"])
    if "mix" in arguments:
        first, equals, rest = arguments["mix"][0].partition("=")
        arguments["mix"] = [f"{places.get(first, first)}{equals}{rest}"]
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as error:
        sampled(places.get(source, source), tmp_path / "out", **arguments)
    assert "\n" not in str(error.value)


def test_mistakes_end_the_command_with_2(runs: Path, tmp_path: Path) -> None:
    """One line on stderr."""
    for arguments in (("--adapter-steps", "0:9"), ("--mix", "nonsense")):
        one_line(memdiff("sample", runs / "a", "--num-images", 2, *arguments, "--out", tmp_path / "out"))


@pytest.mark.slow
def test_a_sampling_process_that_finds_a_mistake(runs: Path, tmp_path: Path) -> None:
    """Its line and its exit code are the command's."""
    done = memdiff(
        "sample", runs / "a", "--num-images", 2, "--mix", f"{runs / 'text'}=1", "--gpus", 2, "--out", tmp_path / "out"
    )
    one_line(done)
    assert "belongs to another network" in done.stderr


def one_line(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("memdiff: error[2]: ")
