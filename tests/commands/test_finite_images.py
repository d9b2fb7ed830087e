"""A model that makes NaN or infinities ends with exit code 4 and a line that says where and why, not with black images.

Shapes: B rows, C H W of x_t.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from memdiff.errors import MemdiffError, NumericError
from memdiff.memory.knobs import MemoryConfig, resolved
from memdiff.models.load import load_policy
from memdiff.models.options import ModelOptions
from memdiff.recipe.prompts import PromptSet
from memdiff.recipe.reading import check_recipe
from memdiff.rewards.build import build_weighted
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks
from memdiff.sampling import sample
from memdiff.sampling.processes import sample_over_processes
from memdiff.training.build import Parts
from memdiff.training.evaluate import evaluate
from tests.commands.test_sample_text import request

Break = Callable[[Any], None]


def spoil(network: str) -> Break:
    """One NaN in a network's first weight."""

    def spoiled(policy: Any) -> None:
        with torch.no_grad():
            next(policy.networks[network].parameters()).view(-1)[0] = float("nan")

    return spoiled


def overflow(policy: Any) -> None:
    """Step 2 of the third image."""
    mean = policy.mean

    def overflowing(x_BCHW: torch.Tensor, steps: list[int], prompts: list[str]) -> torch.Tensor:
        found_BCHW = mean(x_BCHW, steps, prompts).clone()
        if steps[0] == 1:
            found_BCHW[2, 0, 0, 0] = float("inf")
        return found_BCHW

    policy.mean = overflowing


def decode_to_infinity(policy: Any) -> None:
    policy.decoder.network.register_forward_hook(lambda module, inputs, images_BCHW: images_BCHW / 0)


FAULTS: list[tuple[str, Break, str]] = [
    (
        "digits",
        spoil("unet"),
        r"image 0 .* after step 1 of 3 \(in the end 4 of 4 are not\): the weight unet\.\S+ is not",
    ),
    ("digits", overflow, r"image 2 .* after step 2 of 3 \(in the end 1 of 4 are not\): the weights are finite"),
    (
        "digits_text",
        spoil("text_encoder"),
        r"image 0 .* after step 1 of 3 .*the weight text_encoder\.\S+ is not finite",
    ),
    ("digits_text", spoil("vae"), r"images 0 to 3: the weight vae\.\S+ is not finite in float32; take an earlier"),
    ("digits_text", decode_to_infinity, r"images 0 to 3: .* decodes to images that are not finite"),
]


@pytest.mark.parametrize(("model", "fault", "said"), FAULTS)
def test_sampling_ends_and_leaves_nothing(
    model: str, fault: Break, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it stops, why, and what to do; neither a part of the images nor an earlier call's grid stays."""
    texts = {"prompt": "three"} if model == "digits_text" else {}
    asked = request(model, tmp_path / "out", steps=3, **texts)
    sample_over_processes(asked, gpus=1)
    assert (tmp_path / "out" / "grid.png").is_file()

    def broken(*arguments: Any, **options: Any) -> Any:
        policy = load_policy(*arguments, **options)
        fault(policy)
        return policy

    monkeypatch.setattr(sample, "load_policy", broken)
    with pytest.raises(NumericError, match=said) as caught:
        sample_over_processes(asked, gpus=1)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["settings.json"]


def test_the_exit_code_of_a_sampling_process_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, of which each fails after a word of a library: its line and its code, and no image."""
    program = tmp_path / "python"
    program.write_text(
        # The shell itself writes: a child of it would outlive it, and write after the folder was cleared.
        f"#!/bin/sh\necho a warning >&2\n: > {tmp_path}/out/image_00000$RANK.png\n"
        "echo 'memdiff: error[4]: image 1 is not finite' >&2\nexit 4\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("memdiff.sampling.processes.choose_world_size", lambda gpus: 2)
    with pytest.raises(MemdiffError, match=r"^image 1 is not finite$") as caught:
        sample_over_processes(request("digits", tmp_path / "out"), gpus=2)
    assert caught.value.exit_code == 4
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["settings.json"]


class Engine:
    """As far as an evaluation knows one."""

    def evaluated(self) -> Any:
        return nullcontext()


def test_an_evaluation_ends_though_the_reward_is_finite() -> None:
    """Yes or no of an image of NaN is no: without a look at the images the run would show black ones and go on."""
    raw: dict[str, Any] = {
        "model": {"kind": "embedded"}, "sampler": {"steps": 3}, "method": {"kind": "reinforce"},
        "reward": [{"kind": "digits", "mode": "binary"}], "evaluate": {"images": 4},
    }  # fmt: skip
    recipe = check_recipe(raw, source="test")
    policy = load_policy(recipe.model, recipe.sampler, ModelOptions(), device=HOST)
    reward, ranks = build_weighted(recipe.reward, device=HOST), Ranks(0, 1, HOST)
    knobs = resolved(MemoryConfig(rollout_batch=4))
    engine: Any = Engine()
    unused: Any = None
    parts = Parts(
        recipe, ranks, policy, PromptSet.read(None), reward, reward, (), engine, unused, unused, knobs, None
    )  # fmt: skip
    assert evaluate(parts, lambda count: None).images_NHWC.max() > 0
    spoil("unet")(policy)
    with torch.no_grad():
        nothing = torch.full((2, 1, 16, 16), float("nan"))
        assert reward.raw(nothing, ["", ""]).tolist() == [[0, 0]]
    with pytest.raises(NumericError, match=r"image 0 is not finite after step 1 of 3"):
        evaluate(parts, lambda count: None)


def test_files_of_others_stay(tmp_path: Path) -> None:
    """A later call removes what an earlier one wrote and nothing else; images are counted by memdiff's own names."""
    asked = request("digits", tmp_path / "out", steps=2)
    sample_over_processes(asked, gpus=1)
    (tmp_path / "out" / "image_of_mine.png").write_bytes(b"mine")
    sample_over_processes(asked.model_copy(update={"num_images": 2}), gpus=1)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"image_000000.png", "image_000001.png", "image_of_mine.png", "grid.png", "settings.json"}


@pytest.mark.parametrize("name", ["settings.json", "grid.png", "image_000007.png"])
def test_a_folder_of_someone_else_is_refused(name: str, tmp_path: Path) -> None:
    """An editor's settings.json too: it would be overwritten."""
    if name.endswith("png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    else:
        (tmp_path / name).write_text('{"editor.fontSize": 12}')
    before = (tmp_path / name).read_bytes()
    with pytest.raises(MemdiffError, match=rf"holds {name}, which memdiff did not write") as caught:
        sample_over_processes(request("digits", tmp_path, steps=2), gpus=1)
    assert caught.value.exit_code == 2 and (tmp_path / name).read_bytes() == before
