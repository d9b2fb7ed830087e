"""The exact google/ddpm-celebahq-256 architecture with random weights: one real update on the CPU."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel

from memdiff.models.architectures import CELEBA_64, CELEBAHQ_256, CIFAR10_32, DDPM_SCHEDULER
from memdiff.models.quiet import quiet_libraries
from memdiff.reporting.rows import read_rows
from tests.helpers.processes import memdiff

quiet_libraries()
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("config", "parameters"), [(CELEBAHQ_256, 113_673_219), (CIFAR10_32, 35_746_307), (CELEBA_64, 78_700_803)]
)
def test_written_down_architectures_have_the_public_parameter_counts(config, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in UNet2DModel(**config).parameters()) == parameters


@pytest.mark.slow
def test_one_update_of_celebahq_256(tmp_path: Path) -> None:
    """Two images, three steps, in-UNet checkpointing: the weights change, and plain diffusers loads them.

    About two minutes on two cores.
    """
    torch.manual_seed(0)
    DDPMPipeline(UNet2DModel(**CELEBAHQ_256), DDPMScheduler(**DDPM_SCHEDULER)).save_pretrained(tmp_path / "base")
    (tmp_path / "mine.py").write_text("def score(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n")
    recipe = {
        "model": {"kind": "ddpm", "path": str(tmp_path / "base")},
        "sampler": {"steps": 3},
        "method": {"kind": "reinforce"},
        "reward": [{"kind": "python", "file": "mine.py"}],
        "memory": {"activation_checkpointing": "blocks", "micro_batch": 1, "rollout_batch": 1},
        "evaluate": {"every": 0},
        "run": {"rounds": 1, "images_per_round": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = memdiff("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "run/metrics.jsonl")
    assert row["update"] == 1 and row["skipped"] == 0 and row["grad_norm"] > 0
    before = UNet2DModel.from_pretrained(tmp_path / "base", subfolder="unet").state_dict()
    after = DDIMPipeline.from_pretrained(tmp_path / "run/model").unet.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 0.9 * len(before)
    # AdamW's first step moves every element by about the learning rate, 1e-5
    assert max(float((after[name] - before[name]).abs().max()) for name in before) == pytest.approx(1e-5, rel=0.2)
