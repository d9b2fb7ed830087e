"""What is told before a rank starts: arguments, model folders, layers, reward files, DeepSpeed's file, the compiler."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memdiff.digits.paths import DIGITS_DDPM, DIGITS_TEXT
from memdiff.engine.config import OptimizerConfig
from memdiff.engine.ds_config import SHIPPED, agreed_values, check_nested_keys, read_user_file
from memdiff.errors import CheckpointError, ConfigError
from memdiff.models.folder import check_folder, check_layers, unet_layers
from memdiff.recipe.reading import check_recipe, laid_over
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.python_file import check_file
from memdiff.runtime.shipped_folder import shipped_folder
from memdiff.training import before_launch
from memdiff.training.before_launch import check_arguments
from memdiff.training.run_folder import RunFolder

LEAST = {"model": {"kind": "embedded"}, "method": {"kind": "reinforce"}, "reward": [{"kind": "digits"}]}
SCORE = "def score(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n"


def recipe(**changes: Any) -> Recipe:
    return check_recipe(laid_over(LEAST, {key.replace("__", "."): value for key, value in changes.items()}), source="r")


def refusal(call: Any, *arguments: Any, **more: Any) -> str:
    """What a person reads, one line of it."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# (content of the file, what the line must say)
BAD_FILES = [
    ("def score(:\n", "line 1: SyntaxError: invalid syntax"),
    ("x = 1\n  y = 2\n", "line 2: IndentationError"),
    (b"\xff\xfe\x00", "reward.py"),
    ("x = 1\0", "reward.py"),
    ("def other(images, prompts): ...\n", "has no function score"),
    ("score = 3\n", "has no function score"),
    ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'; install its package for "),
    ("raise KeyError('a\\nb')\n", "can't be imported: KeyError"),
    ("import sys; sys.exit(3)\n", "can't be imported: SystemExit: 3"),
    ("import os; os._exit(5)\n", "ends the process that imports it (exit code 5)"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n", "(SIGSEGV)"),
    ("print('noise'); import os; os.close(1); raise OSError('full')\n", "can't be imported: OSError: full"),
]


@pytest.mark.parametrize(("content", "said"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_reward_files_are_told(tmp_path: Path, content: str | bytes, said: str) -> None:
    """By a process of their own: what ends or crashes it leaves this one alone."""
    file = tmp_path / "reward.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in refusal(check_file, file, "score")


def test_good_reward_files_pass_and_slow_ones_are_ended(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "reward.py"
    file.write_text(f"from __future__ import annotations\nprint('hello')\n{SCORE.replace('images.mean', 'sum')}")
    check_file(file, "score")
    (tmp_path / "beside_it.py").write_text(SCORE)
    file.write_text("from beside_it import score\n")
    check_file(file, "score")
    file.write_text("import time; time.sleep(1000)\n")
    assert "not imported within 3 s" in refusal(check_file, file, "score", seconds=3.0)
    assert "importing reward file" in capsys.readouterr().out


def test_the_place_of_a_run_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the place of the folder or above it, a name that no disk takes, more ranks than images."""
    (tmp_path / "file").write_text("")
    for out in ("file", "file/run"):
        assert "is no folder" in refusal(
            check_arguments, recipe(), RunFolder(tmp_path / out), None, "auto", None
        ).replace("can't be written: Not a directory", "is no folder")
    assert "--out" in refusal(check_arguments, recipe(), RunFolder(tmp_path / ("x" * 300)), None, "auto", None)
    new = RunFolder(tmp_path / "a/b/run")
    check_arguments(recipe(), new, 2, "auto", None)
    assert "use --gpus 4 or fewer" in refusal(check_arguments, recipe(run__images_per_round=4), new, 5, "auto", None)
    for gpus in (0, -1, 10**6):
        assert "--gpus must be 1..1024" in refusal(check_arguments, recipe(), new, gpus, "auto", None)
    monkeypatch.setattr("memdiff.training.run_folder.os.access", lambda *_: False)
    with pytest.raises(CheckpointError, match=r"can't be written in; give another --out$") as refused:
        check_arguments(recipe(), new, None, "auto", None)
    assert refused.value.exit_code == 5
    assert not (tmp_path / "a").exists()


def test_a_recipe_may_be_corrected_until_a_round_is_done(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare(recipe(run__seed=1), "auto").release()
    folder.write_status("failed", round_number=0, exit_code=2)
    folder.prepare(recipe(run__seed=2), "auto").release()
    assert folder.recipe().run.seed == 2
    folder.write_status("stopped", round_number=1)
    assert "different: run.seed" in refusal(folder.prepare, recipe(run__seed=3), "auto")


def copied(tmp_path: Path, of: Path = DIGITS_TEXT) -> Path:
    return Path(shutil.copytree(of, tmp_path / "model"))


def of_folder(folder: Path, **changes: Any) -> Recipe:
    if (folder / "vae").exists():
        return recipe(prompts="a seven", model={"kind": "stable_diffusion", "path": str(folder)}, **changes)
    return recipe(model={"kind": "ddpm", "path": str(folder)}, **changes)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("model_index.json", "has no model_index.json"),
        ("unet/config.json", "unet/config.json is missing"),
        ("unet/diffusion_pytorch_model.safetensors", "unet/ holds no weights"),
        ("text_encoder/model.safetensors", "text_encoder/ holds no weights"),
        ("vae/config.json", "vae/config.json is missing"),
        ("tokenizer", "tokenizer/ holds nothing"),
        ("scheduler", "scheduler/ holds nothing"),
    ],
)
def test_incomplete_model_folders_are_told(tmp_path: Path, gone: str, said: str) -> None:
    folder = copied(tmp_path)
    check_folder(of_folder(folder).model)
    place = folder / gone
    checked = of_folder(folder).model
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if gone == "tokenizer":  # the folder's own files would stand for it
        (folder / "model_index.json").rename(folder / "x")
        (folder / "tokenizer").mkdir()
        (folder / "x").rename(folder / "model_index.json")
    assert said in refusal(check_folder, checked)


def test_an_empty_folder_and_empty_weights(tmp_path: Path) -> None:
    folder = copied(tmp_path, DIGITS_DDPM)
    model = of_folder(folder).model
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert "is an empty file" in refusal(check_folder, model)
    shutil.rmtree(folder)
    folder.mkdir()
    assert "is empty" in refusal(check_folder, model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"targets": ["to_qq"]}}, "adapter.targets: no layer is named to_qq; there are"),
        ({"trained_modules": ["middle"]}, "trained_modules: the UNet has no middle; it has"),
    ],
)
def test_layers_that_are_none_are_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """By the names in the weights' files, before torch is loaded."""
    assert said in refusal(check_arguments, recipe(**changes), RunFolder(tmp_path / "run"), None, "auto", None)


@pytest.mark.parametrize("folder", [DIGITS_DDPM, DIGITS_TEXT])
def test_layers_are_those_of_the_network(folder: Path, tmp_path: Path) -> None:
    """The defaults and whole blocks pass; a part of a name is none. Other files than safetensors say nothing."""
    layers = unet_layers(folder)
    assert layers is not None
    check_layers(layers, recipe(adapter={}).adapter, ("mid_block", "conv_in"))
    assert "has no mid;" in refusal(check_layers, layers, None, ("mid",))
    assert unet_layers(tmp_path) is None
    (tmp_path / "x.safetensors").write_bytes(b"no header")
    assert unet_layers(tmp_path) is None


@pytest.mark.parametrize("path", ["a b/c", "google/ddpm celeba", "owner//name", "-x/y", "x/y--z", "x/y.git", "é/x"])
def test_what_is_no_hub_id_is_told(path: str) -> None:
    assert "no hub id" in refusal(recipe, model={"kind": "ddpm", "path": path}) or path.count("/") > 1


def test_a_hub_id_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline the cache decides; else the hub is asked for the name, and where it does not answer the rank will see."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    wrong = recipe(model={"kind": "ddpm", "path": "google/ddpm-celebahq-265"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; fetch it first: hf download google" in refusal(before_launch._check_hub, wrong)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(before_launch, "why_unreachable", lambda: "")

    def ask(self: HfApi, name: str, **options: Any) -> None:
        raise OSError("no network") if name == "x/y" else RepositoryNotFoundError("no", response=response)

    response: Any = SimpleNamespace(headers={}, request=None)
    monkeypatch.setattr(HfApi, "model_info", ask)
    assert "and the hub has none" in refusal(before_launch._check_hub, wrong)
    before_launch._check_hub(recipe(model={"kind": "ddpm", "path": "x/y"}))


def test_without_a_network_a_hub_id_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One request, one line: the hub's library, asked for a file, would try six times and say so each time."""
    from huggingface_hub import constants

    from memdiff.models.load import pipeline_kind
    from memdiff.rewards.weights import find_weights
    from memdiff.runtime.hub import why_unreachable

    asked: list[str] = []

    def head(url: str, timeout: float) -> None:
        asked.append(url)
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))
    why_unreachable.cache_clear()
    try:
        problem = f"{constants.ENDPOINT} can't be reached (Name or service not known)"
        nowhere = recipe(model={"kind": "ddpm", "path": "nobody/nowhere"})
        words = f"nobody/nowhere is no folder here and not in the hub's cache, and {problem}; fetch it where"
        assert words in refusal(before_launch._check_hub, nowhere)
        assert words in refusal(pipeline_kind, "nobody/nowhere")
        assert problem in refusal(find_weights, "nobody/nowhere", "config.json")
    finally:
        why_unreachable.cache_clear()
    assert asked == [constants.ENDPOINT]
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_no_compiler_where_one_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor's line, before a rank dies of it. With the operators built, nobody asks for a compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    said = refusal(before_launch._check_operators, recipe(memory__offload_optimizer=True), 1)
    assert "cpu_adam, deepspeed_shm_comm must be compiled" in said and "apt-get install g++" in said
    for name in ("cpu_adam", "deepspeed_shm_comm"):
        (tmp_path / "extensions" / name).mkdir(parents=True)
        (tmp_path / "extensions" / name / f"{name}.so").touch()
    before_launch._check_operators(recipe(memory__offload_optimizer=True), 1)


def test_a_precision_that_the_device_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before a rank starts, as DeepSpeed's accelerator has it; what it does passes."""
    device: Any = SimpleNamespace(
        is_fp16_supported=lambda: False, is_bf16_supported=lambda: True, device_name=lambda: "cpu"
    )
    monkeypatch.setattr("memdiff.engine.engine.get_accelerator", lambda: device)
    monkeypatch.setattr(before_launch, "_check_operators", lambda *_: None)
    said = refusal(before_launch.check_before_launch, recipe(model__precision="fp16"), None, 1)
    assert "model.precision fp16 is not supported on this device (cpu); use auto" in said
    for precision in ("bf16", "fp32", "auto"):
        before_launch.check_before_launch(recipe(model__precision=precision), None, 1)


TRAINER = {  # as Hugging Face's documentation of the Trainer has it
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto"}},
    "zero_optimization": {
        "stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "reduce_bucket_size": "auto",
        "overlap_comm": True, "contiguous_gradients": True,
    },
    "gradient_accumulation_steps": 1, "gradient_clipping": "auto", "steps_per_print": "auto",
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
}  # fmt: skip


def read(tmp_path: Path, content: Any, **how: Any) -> dict[str, Any]:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    return read_user_file(file, agreed_values(OptimizerConfig(), **how))


def test_deepspeed_files_that_say_the_same_are_taken(tmp_path: Path) -> None:
    """Copies of those that ship, and what the Trainer's users have; "auto" is left to the trainer."""
    for file in sorted(shipped_folder(SHIPPED).glob("*.json")):
        config = read(tmp_path, json.loads(file.read_text()))
        assert "stage" not in config["zero_optimization"] and "gradient_clipping" not in config
    config = read(tmp_path, TRAINER)
    assert config["zero_optimization"] == {"overlap_comm": True, "contiguous_gradients": True}
    assert config.keys() <= {"zero_optimization", "fp16"} and "auto" not in json.dumps(config)
    check_nested_keys(config, tmp_path / "ds.json")
    assert "fp16.enabled" in refusal(read, tmp_path, {"fp16": {"enabled": True}}, precision="fp32")
    assert "offload_optimizer" in refusal(read, tmp_path, TRAINER, offload=False)


def test_all_problems_of_a_deepspeed_file_at_once(tmp_path: Path) -> None:
    said = refusal(
        read,
        tmp_path,
        {
            "train_batch_size": 8, "gradient_clipping": 0.3, "gradient_acumulation_steps": 1,
            "zero_optimization": {"stage": 3, "cpu_offload": True}, "fp16": [],
        },
    )  # fmt: skip
    for word in ("train_batch_size", "gradient_clipping", "zero_optimization.stage", "cpu_offload", "fp16 must be"):
        assert word in said
    assert "no key gradient_acumulation_steps" in said
    (tmp_path / "ds.json").write_text('{"fp16": {"hysteresis": 1, "hysteresis": 2}}')
    assert "the key hysteresis is given twice" in refusal(read_user_file, tmp_path / "ds.json", {})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"zero_optimization": {"reduce_buket_size": 5, "overlap_com": True}},
            "no key zero_optimization.reduce_buket_size; did you mean reduce_bucket_size?; DeepSpeed knows no key "
            "zero_optimization.overlap_com; did you mean overlap_comm?",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "large"}},
            "zero_optimization.reduce_bucket_size: input should be a valid integer",
        ),
        ({"fp16": {"hysteresys": 2}}, "no key fp16.hysteresys; did you mean hysteresis?"),
        (
            {"zero_optimization": {"reduce_bucket_size": -1}},
            "zero_optimization.reduce_bucket_size: input should be greater than 0, got -1",
        ),
    ],
)
def test_nested_mistakes_are_told(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    """By keys and kinds that are written down, without DeepSpeed; DeepSpeed's own config model refuses the same."""
    assert said in refusal(read, tmp_path, content)
    assert "DeepSpeed refuses" in refusal(check_nested_keys, content, tmp_path / "ds.json")


def test_keys_that_do_not_go_together_are_deepspeeds_own_word(tmp_path: Path) -> None:
    """What no key alone is wrong about: its config model reads the whole file before anything is loaded."""
    content = {"fp16": {"enabled": True, "loss_scale_window": 0}}
    config = read(tmp_path, content)
    assert config == {"fp16": {"loss_scale_window": 0}}
    assert "loss_scale_window must be > 0" in refusal(check_nested_keys, content, tmp_path / "ds.json")
