"""Configs of others whose values have the right type and make no network: one line, with the reward and its folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from memdiff.errors import ConfigError
from memdiff.rewards.build import build_reward
from memdiff.rewards.config import AnyPart
from memdiff.rewards.families_config import ClipSimilarityConfig, HpsConfig
from tests.helpers.reward_models import tiny_clip_config, tiny_open_clip, write_clip, write_hps

CPU = torch.device("cpu")


def refusal(part: AnyPart) -> str:
    with pytest.raises(ConfigError) as caught:
        build_reward(part, device=CPU)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 0), ("hidden_size", 0), ("hidden_size", -8),
        ("hidden_act", "os.system"), ("intermediate_size", 2**62),
    ],
)  # fmt: skip
def test_values_that_make_no_network_are_one_line(tower: str, key: str, value: Any, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    write_clip(folder, tiny_clip_config())
    config = json.loads((folder / "config.json").read_text())
    config[tower][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert str(folder) in refusal(ClipSimilarityConfig(kind="clip_similarity", path=str(folder)))


@pytest.mark.parametrize("name", ["visual.positional_embedding", "visual.conv1.weight"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 24), (0, 0, 0, 0)])
def test_shapes_that_make_no_network_are_one_line(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """An architecture that is read off the shapes of tensors."""
    folder = tmp_path / "hps"
    write_hps(folder, tiny_open_clip())
    (file,) = folder.glob("*.pt")
    stored = torch.load(file, weights_only=True)
    tensors = stored.get("state_dict", stored)
    assert name in tensors
    torch.save(tensors | {name: torch.zeros(shape)}, file)
    assert str(folder) in refusal(HpsConfig(kind="hpsv2", path=str(folder), tokenizer=str(folder)))
