"""Seconds until each kind of mistake in a run is told: `python -m tests.fuzz.told [--json FILE]`, a table.

Each is a `memdiff train` of its own, from the interpreter's start to its end with exit code 2 and one line, before any
rank is started. Processor seconds are the command's and its children's; whether it imported torch is asked of it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "benchmarks/recorder/record/kept/ddpm"
CODE = """
import sys
from memdiff.cli import main
try:
    main(sys.argv[1:])
finally:
    print("torch" if "torch" in sys.modules else "no torch", flush=True)
"""
BASE: dict[str, Any] = {
    "model": {"kind": "embedded"}, "method": {"kind": "reinforce"}, "reward": [{"kind": "digits"}],
    "run": {"rounds": 1, "images_per_round": 2},
}  # fmt: skip
REWARD = "def score(images, prompts):\n    return images.mean((1, 2, 3))\n"


@dataclass(frozen=True)
class Told:
    """How a mistake was told."""

    kind: str
    line: str
    seconds: float
    processor_seconds: float
    torch: bool


def recipe(**sections: Any) -> str:
    """The base with these sections in the place of its own."""
    return yaml.safe_dump(BASE | sections)


def python_reward(content: str) -> tuple[str, dict[str, str]]:
    """A recipe whose reward is this file."""
    return recipe(reward=[{"kind": "python", "file": "reward.py", "function": "score"}]), {"reward.py": content}


def mistakes() -> dict[str, tuple[str, dict[str, str], tuple[str, ...]]]:
    """By kind: the recipe, files beside it, further words of the command line."""
    plain, no_files = recipe(), {}
    ddpm = {"kind": "ddpm", "path": "model"}
    return {
        "YAML that is none": ("model: [", no_files, ()),
        "a misspelt key": (recipe(run={"ruonds": 1}), no_files, ()),
        "a number out of its bounds": (recipe(optimizer={"learning_rate": 1e300}), no_files, ()),
        "`--set` of no key": (plain, no_files, ("--set", "run.x=1")),
        "`--gpus` beyond the images": (plain, no_files, ("--gpus", "5")),
        "`--resume must` without a run": (plain, no_files, ("--resume", "must")),
        "prompts that are no texts": (recipe(model={"kind": "embedded", "name": "digits_text"},
                                             prompts={"file": "p.txt"}), {"p.txt": "\0\1\2" * 99}, ()),
        "an empty model folder": (recipe(model={"kind": "ddpm", "path": "nothing"}), {"nothing/x.txt": ""}, ()),
        "an adapter's target that is none": (recipe(model=ddpm, adapter={"targets": ["to_qq"]}), no_files, ()),
        "trained modules that are none": (recipe(model=ddpm, trained_modules=["up"]), no_files, ()),
        "a hub id that is none": (recipe(model={"kind": "ddpm", "path": "no//such"}), no_files, ()),
        "a reward file with a syntax error": (*python_reward("def score(:"), ()),
        "a reward file without the function": (*python_reward("x = 1"), ()),
        "a reward file that raises": (*python_reward("1 / 0"), ()),
        "a reward file that ends its process": (*python_reward(f"import torch, os\n{REWARD}os._exit(0)"), ()),
        "a DeepSpeed file with a key of the trainer's": (plain, {"ds.json": '{"train_batch_size": 8}'},
                                                         ("--ds-config", "ds.json")),
        "a DeepSpeed file with a misspelt nested key": (
            plain, {"ds.json": '{"zero_optimization": {"reduce_buket_size": 5}}'}, ("--ds-config", "ds.json")),
    }  # fmt: skip


def tried(kind: str, folder: Path) -> Told:
    """Runs the command in `folder`. Raises AssertionError where the mistake is not told as it should be."""
    text, files, words = mistakes()[kind]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(MODEL, folder / "model")
    (folder / "recipe.yaml").write_text(text)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    command = [sys.executable, "-c", CODE, "train", "recipe.yaml", "--out", "run", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    begun, before = time.monotonic(), os.times()
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    seconds, after = time.monotonic() - begun, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    lines = [line for line in ended.stderr.splitlines() if line.startswith("memdiff: error[")]
    assert ended.returncode in (2, 5) and len(lines) == 1, f"{kind}: {ended.returncode}: {ended.stdout}{ended.stderr}"
    assert not (folder / "run/status.json").exists(), f"{kind}: a rank was started"
    has_torch = ended.stdout.splitlines()[-1:] == ["torch"]
    return Told(kind, lines[0], round(seconds, 2), round(used, 2), has_torch)


def main() -> int:
    """A row a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in mistakes():
            row = tried(kind, Path(folder) / "trial")
            rows.append(asdict(row))
            sys.stdout.write(f"| {kind} | {row.seconds} | {row.processor_seconds} | {'yes' if row.torch else 'no'} |\n")
            sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(json.dumps({"load": os.getloadavg(), "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
