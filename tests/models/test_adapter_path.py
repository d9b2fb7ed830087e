"""`adapter.path`: training goes on from a LoRA file, at its dW, and the base is what training started from."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from memdiff.errors import ConfigError
from memdiff.models.config import AdapterConfig
from memdiff.models.lora import inject
from memdiff.models.quiet import quiet_libraries
from memdiff.recipe.reading import check_recipe, read_recipe, recipe_hash
from tests.helpers import lora_files
from tests.helpers.lora_files import Factors, Tensors, dense, factors_for, in_network
from tests.helpers.tiny import (
    tiny_policy,
    tiny_sdxl,
    tiny_sdxl_pipeline,
    tiny_stable_diffusion,
    tiny_stable_diffusion_pipeline,
)

quiet_libraries()
LAYERS = ("to_q", "to_out.0", "ff.net.2", "conv1")


def relative(got: Tensors, expected: Tensors) -> float:
    assert got.keys() == expected.keys()
    return max(float((got[name] - delta).abs().max() / delta.abs().max()) for name, delta in expected.items())


def kohya_file(folder: Path, unet: torch.nn.Module) -> tuple[Path, Factors]:
    """Ranks 2 and 3, alphas 1 and 4."""
    factors = factors_for(unet, LAYERS, ranks=(2, 3, 2), alphas=(1.0, 4.0))
    save_file(lora_files.kohya(factors), folder / "theirs.safetensors")
    return folder / "theirs.safetensors", factors


def moved(policy: Any) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(policy.trainable().values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_training_goes_on_at_the_files_dw(kind: str, alpha: float | None, tmp_path: Path) -> None:
    """Whatever alpha the new run trains at; moved and saved, it is read back as it stood, by diffusers too."""
    make, pipeline = {
        "sd": (tiny_stable_diffusion, tiny_stable_diffusion_pipeline),
        "sdxl": (tiny_sdxl, tiny_sdxl_pipeline),
    }[kind]
    file, factors = kohya_file(tmp_path, pipeline().unet)
    policy = make(adapter=AdapterConfig(path=str(file), alpha=alpha))
    assert relative(in_network(policy.unet), dense(factors)) < 1e-6
    assert {name.partition(".lora_")[0] for name in policy.trainable()} == set(factors)
    scalings = {layer: alpha / len(a) if alpha else 1.0 for layer, (a, _, _) in factors.items()}  # as of a new adapter
    assert {layer: policy.unet.get_submodule(layer).scaling[inject.TRAINED] for layer in factors} == scalings
    moved(policy)
    trained = in_network(policy.unet)
    assert relative(trained, dense(factors)) > 1e-2
    policy.save(tmp_path / "model", {name: parameter.detach() for name, parameter in policy.trainable().items()})
    again, theirs = make(adapter=AdapterConfig(path=str(tmp_path / "model"))), pipeline()
    assert relative(in_network(again.unet), trained) < 1e-6
    theirs.load_lora_weights(str(tmp_path / "model"))
    assert relative(in_network(theirs.unet), trained) < 1e-6


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_unconditional_models_go_on_too(alpha: float | None, tmp_path: Path) -> None:
    """A PEFT folder with an alpha; what is saved is a PEFT folder with ranks and alphas by layer."""
    first = tiny_policy(adapter=AdapterConfig(rank=2, alpha=8))
    moved(first)
    first.save(tmp_path / "first", {name: p.detach() for name, p in first.trainable().items()})
    second = tiny_policy(adapter=AdapterConfig(path=str(tmp_path / "first"), alpha=alpha))
    assert relative(in_network(second.unet), in_network(first.unet)) < 1e-6
    moved(second)
    second.save(tmp_path / "second", {name: p.detach() for name, p in second.trainable().items()})
    third = tiny_policy()
    third.attach([(tmp_path / "second", 1.0)])
    assert relative(in_network(third.unet), in_network(second.unet)) < 1e-6


def test_the_base_is_what_training_started_from(tmp_path: Path) -> None:
    """Inside `base`, at steps in the window: the file's adapter, not none; frozen; off elsewhere."""
    file, _ = kohya_file(tmp_path, tiny_stable_diffusion_pipeline().unet)
    adapter = AdapterConfig(path=str(file), steps=(1, 3))
    policy = tiny_stable_diffusion(adapter=adapter, keep_base=True)
    start = tiny_stable_diffusion(adapter=adapter)
    plain = tiny_stable_diffusion()
    moved(policy)
    x, texts = torch.randn(1, 4, 8, 8), ["a cat"]
    for each in (policy, start, plain):
        each.encode(texts)
    with torch.no_grad():
        for step in range(4):
            with policy.base():
                base = policy.mean(x, [step], texts)
            inside = 1 <= step < 3
            assert torch.equal(base, (start if inside else plain).mean(x, [step], texts))
            assert torch.equal(base, policy.mean(x, [step], texts)) != inside
    assert not any(inject.START in name for name in policy.trainable())
    with pytest.raises(ConfigError, match="was not kept"), start.base():
        pass


def test_a_window_is_to_be_said_again(tmp_path: Path) -> None:
    """It was one of another chain."""
    first = tiny_policy(adapter=AdapterConfig(rank=2, steps=(1, 3)))
    moved(first)
    first.save(tmp_path, {name: p.detach() for name, p in first.trainable().items()})
    with pytest.raises(ConfigError, match=r"acts in steps 1:3 of 5; say .*: adapter.steps, such as \[1, 3\]"):
        tiny_policy(adapter=AdapterConfig(path=str(tmp_path)))
    assert tiny_policy(adapter=AdapterConfig(path=str(tmp_path), steps=(0, 2))).trains(0)


RECIPE = """\
model: {kind: embedded, name: digits_text}
adapter: ADAPTER
method: {kind: reinforce}
reward: [{kind: digits}]
prompts: a seven
"""


def test_a_recipe_names_it(tmp_path: Path) -> None:
    """From beside the recipe, as the file itself; what a new adapter has is refused, and so is what is not there."""
    (tmp_path / "theirs").mkdir()
    file, _ = kohya_file(tmp_path / "theirs", tiny_stable_diffusion_pipeline().unet)

    def read(adapter: str) -> Any:
        (tmp_path / "recipe.yaml").write_text(RECIPE.replace("ADAPTER", adapter))
        return read_recipe(tmp_path / "recipe.yaml", ())

    recipe = read("{path: theirs, alpha: 2}")
    assert recipe.adapter.path == str(file.resolve())
    again = check_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), source="stored")
    assert again == recipe and recipe_hash(again) == recipe_hash(recipe)
    for adapter, said in {
        "{path: theirs, rank: 8}": "rank is a new adapter's",
        "{path: theirs, targets: [to_q]}": "targets is a new adapter's",
        "{path: nowhere}": "no such adapter file or folder: nowhere",
        "{path: recipe.yaml}": "is no adapter",
    }.items():
        with pytest.raises(ConfigError, match=said):
            read(adapter)
