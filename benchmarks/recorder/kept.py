"""Runs and models that an older commit wrote and newer ones must go on reading. Made once; `write` leaves them alone.

`digits_run`: LoRA of rank 1, a normalised reward, 8-bit AdamW, an average of the weights, two rounds, a checkpoint.
`digits_text_run`: LoRA, advantages by prompt with a memory of prompts, one round. `digits_text_lora`: an adapter in
diffusers' file. `ddpm`: a whole pipeline.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.recorder import adapter, models
from benchmarks.recorder.case import overlaid
from benchmarks.recorder.cases import BASES, HELD_OUT, LOG_PROBABILITY, NORMALISED

ADAPTER = {"rank": 1, "targets": ["to_q", "to_v"]}
RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "digits_run": (
        "digits",
        {
            "adapter": ADAPTER,
            "reward": [NORMALISED["reward"][0]],  # no file of the machine's
            "optimizer": {"learning_rate": 1e-2, "ema": 0.8, "bits": 8, "warmup_updates": 3},
            **HELD_OUT,
            "run": {"rounds": 2, "images_per_round": 4, "save_every": 1, "seed": 5, "keep_checkpoints": 1},
        },
    ),
    "digits_text_run": (
        "digits_text",
        {
            "adapter": ADAPTER,
            "reward": [LOG_PROBABILITY],
            "method": {"kind": "reinforce", "per_prompt": True, "prompt_memory": 4},
            "optimizer": {"learning_rate": 3e-2},
            "run": {"rounds": 1, "images_per_round": 4, "save_every": 1, "seed": 5, "keep_checkpoints": 1},
        },
    ),
}
# The embedded UNet with the adapter merged in (2 MB), and DeepSpeed's scripts, which would be linted as ours.
LEFT_OUT = ("unet", "evolution.gif", "zero_to_fp32.py", "zero_to_torch.py")


def make(folder: Path, scratch: Path) -> None:
    """All of it into `folder`."""
    work = scratch / "kept"
    models.write_models(work / "tiny_models")
    pipeline = {"model": {"kind": "ddpm", "path": str(work / "tiny_models" / "ddpm")}, "optimizer.learning_rate": 1e-2}
    for name, (base, changes) in {**RUNS, "ddpm_run": ("ddpm", pipeline)}.items():
        file = work / f"{name}.yaml"
        file.write_text(yaml.safe_dump(overlaid(BASES[base], changes)))
        adapter.run(["train", str(file), "--out", str(work / name)])
    for name in RUNS:
        _keep(work / name, folder / name, LEFT_OUT)
        _forget_left_out(folder / name)
        _without(folder / name / "status.json", "pid")
    _keep(work / "digits_text_run" / "model", folder / "digits_text_lora")
    _keep(work / "ddpm_run" / "model", folder / "ddpm")
    _without(folder / "ddpm" / "unet" / "config.json", "_name_or_path")  # a folder of this machine's
    shutil.rmtree(work)


def _keep(source: Path, target: Path, left_out: Sequence[str] = ()) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*left_out))


def _without(file: Path, key: str) -> None:
    known = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in known.items() if name != key}, indent=2) + "\n")


def _forget_left_out(run: Path) -> None:
    """Out of the checkpoint's list of files, which it is checked by."""
    for manifest in run.glob("checkpoints/*/MANIFEST.json"):
        entries = json.loads(manifest.read_text())
        kept = {name: entry for name, entry in entries.items() if Path(name).name not in LEFT_OUT}
        manifest.write_text(json.dumps(kept, indent=2))
