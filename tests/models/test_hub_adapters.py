"""Adapters by hub id: from the hub's cache, at the same dW; told in one line where it is not at hand."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import save_file

from memdiff.errors import ConfigError
from memdiff.models.config import AdapterConfig
from memdiff.models.lora import hub
from memdiff.models.lora.files import read_adapter
from memdiff.models.lora.paths import find_adapter, on_hub
from memdiff.models.quiet import quiet_libraries
from memdiff.recipe.reading import check_recipe
from memdiff.sampling.request import _mixed
from tests.helpers import lora_files
from tests.helpers.lora_files import factors_for
from tests.helpers.tiny import tiny_stable_diffusion_pipeline

quiet_libraries()

COMMIT = "0" * 40


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A hub's cache without a network: `cached("owner/name", "a.safetensors", ...)` puts LoRA files into it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    factors = factors_for(tiny_stable_diffusion_pipeline().unet, ("to_q",), ranks=(2,), alphas=(1.0,))
    save_file(lora_files.kohya(factors), tmp_path / "lora.safetensors")

    def put(repository: str, *names: str) -> Path:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        for name in names:
            file = folder / "snapshots" / COMMIT / name
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "lora.safetensors", file)
        return folder / "snapshots" / COMMIT

    return put


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_a_repositorys_adapter_is_read_from_the_cache(cached: Callable[..., Path]) -> None:
    """The only one, the one by a usual name, or the one that is named; by adapter.path and by --mix."""
    one = cached("some/one", "style.safetensors", "README.md")
    assert find_adapter(Path("some/one")) == one / "style.safetensors"
    two = cached("some/two", "other.safetensors", "pytorch_lora_weights.safetensors")
    assert find_adapter(Path("some/two")) == two / "pytorch_lora_weights.safetensors"
    three = cached("some/three", "a.safetensors", "b/c.safetensors")
    assert "holds 2 .safetensors files; name one" in refusal(lambda: find_adapter(Path("some/three")))
    assert find_adapter(Path("some/three/b/c.safetensors")) == three / "b" / "c.safetensors"
    assert "holds no d.safetensors" in refusal(lambda: find_adapter(Path("some/three/d.safetensors")))
    cached("some/pipeline", "unet.safetensors", "model_index.json")
    assert "name one of them" in refusal(lambda: find_adapter(Path("some/pipeline")))
    assert _mixed("some/one=0.5") == (one / "style.safetensors", 0.5)
    assert read_adapter(Path("some/one")).layers.keys() == read_adapter(one / "style.safetensors").layers.keys()


def test_what_is_not_at_hand_is_one_line(cached: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, and where the hub says that there is none."""
    said = refusal(lambda: find_adapter(Path("runs/mistyped")))
    assert said.startswith("no such adapter file or folder: runs/mistyped, and as a hub id it is not in the cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    class Hub:
        def model_info(self, name: str, timeout: float) -> Any:
            assert timeout == hub.SECONDS
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert "the hub has no repository of that name" in refusal(lambda: find_adapter(Path("some/none")))


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("owner/name", True), ("owner/name/file.safetensors", True), ("owner/name/a/b.bin", True), ("name", False),
     ("./name", False), ("/a/b", False), ("a/b/c", False), ("a/../b.safetensors", False), ("a/b/../c.bin", False)],
)  # fmt: skip
def test_what_could_be_a_hub_id(text: str, is_one: bool) -> None:
    assert on_hub(Path(text)) == is_one


def test_a_recipe_keeps_the_id() -> None:
    """No network is asked while a recipe is read; a stored recipe is the same."""
    assert AdapterConfig(path="some/one").path == "some/one"
    raw = {
        "model": {"kind": "embedded", "name": "digits_text"},
        "adapter": {"path": "some/one/style.safetensors"},
        "prompts": "a seven",
        "method": {"kind": "draft", "last_steps": 1},
        "reward": [{"kind": "digits", "digits": [7], "mode": "probability"}],
    }
    recipe = check_recipe(raw, source="a")
    assert recipe.adapter and recipe.adapter.path == "some/one/style.safetensors"
    assert check_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), source="b") == recipe
