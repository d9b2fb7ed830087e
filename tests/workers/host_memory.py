"""One rank on the stand-in for a GPU: anonymous memory of its process before a model, with it, and with its UNet away.

python -m tests.workers.host_memory FOLDER writes a Stable Diffusion there, and prints bytes as JSON.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.measures import device_stand_in

device_stand_in.stand_in()

import torch  # noqa: E402  # after the stand-in, which other modules bind by name

from benchmarks.recorder.models import (  # noqa: E402
    tiny_conditioned_unet,
    tiny_scheduler,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_vae,
)
from benchmarks.studies.host_memory import write_random  # noqa: E402
from memdiff.memory.knobs import resolved  # noqa: E402
from memdiff.memory.offload import offload  # noqa: E402
from memdiff.models.load import load_policy  # noqa: E402
from memdiff.planner.plan import make_plan  # noqa: E402
from memdiff.recipe.model_options import model_options  # noqa: E402
from memdiff.recipe.reading import check_recipe  # noqa: E402
from memdiff.runtime.host_allocator import return_freed_memory  # noqa: E402
from memdiff.runtime.units import GIB  # noqa: E402

WIDE: dict[str, Any] = {"block_out_channels": (256, 512), "attention_head_dim": 8, "norm_num_groups": 32}


def write_pipeline(folder: Path) -> None:
    """Small but for its UNet, whose fp32 weights are written without being in memory."""
    from diffusers import StableDiffusionPipeline

    build: Any = StableDiffusionPipeline
    parts = {"vae": tiny_vae(), "text_encoder": tiny_text_encoder(), "tokenizer": tiny_tokenizer()}
    build(
        **parts, unet=tiny_conditioned_unet(), scheduler=tiny_scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    with torch.device("meta"):
        unet = tiny_conditioned_unet(**WIDE, layers_per_block=2)
    unet.save_config(folder / "unet")
    write_random(folder / "unet" / "diffusion_pytorch_model.safetensors", unet, half=False)


def anonymous_bytes() -> int:
    """Of this process, swapped out or not."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmSwap"))


def main(folder: Path) -> None:
    """Loads once for what the libraries take at first use, and once to measure."""
    return_freed_memory()
    write_pipeline(folder)
    recipe = check_recipe(
        {
            "model": {"kind": "stable_diffusion", "path": str(folder), "precision": "fp16"},
            "adapter": {"rank": 2}, "sampler": {"steps": 2, "eta": 0.0}, "prompts": ["seven"],
            "method": {"kind": "draft", "last_steps": "all"}, "reward": [{"kind": "digits", "mode": "probability"}],
            "memory": {"idle_unet": "host", "micro_batch": 1, "activation_checkpointing": "none"},
            "run": {"images_per_round": 1},
        },
        source="test",
    )  # fmt: skip
    plan = make_plan(recipe, budget_bytes=4 * GIB)
    options = model_options(recipe, resolved(recipe.memory), precision="fp16")

    def load() -> Any:
        return load_policy(recipe.model, recipe.sampler, options, device=device_stand_in.DEVICE)

    load().encode(["seven"])
    gc.collect()
    before = anonymous_bytes()
    policy = load()
    loaded = anonymous_bytes()
    encoder = policy.networks["text_encoder"]
    waiting = {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()}
    policy.encode(["seven"])
    back = {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()}
    offload(policy.networks["unet"], device_stand_in.DEVICE)
    unet = sum(parameter.numel() for parameter in policy.networks["unet"].parameters())
    measured = {
        "unet_elements": unet, "loaded": loaded - before, "away": anonymous_bytes() - loaded,
        "planned_load": plan.host_load_bytes, "planned_run": plan.host_bytes,
        "encoder_waits_untouched": back == waiting,
        "encoder_buffers_are_back": not any(device_stand_in.is_there(buffer) for buffer in encoder.buffers()),
    }  # fmt: skip
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
