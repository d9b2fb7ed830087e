"""The peers' loops on Stable Diffusion 1.5's shape: fake tensors under the ledger, no GPU and no weights.

TRL's AlignProp puts every UNet call under a checkpoint and nothing else; `bare.alignprop` is that loop. Two short
chains are run, and what one step adds is added up to the whole chain: each adds the same. UNet, VAE and reward in fp16,
LoRA in fp32, as TRL has them. The text encoder, 0.23 GiB that TRL leaves on the GPU, is not counted.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from peft import LoraConfig

from benchmarks.peers.bare import TARGETS, Bare, alignprop
from memdiff.models.architectures import STABLE_DIFFUSION_1
from memdiff.models.latent_files import skeleton_parts
from memdiff.planner.fake_tensors import GPU, fake_gpu
from memdiff.planner.ledger import Ledger
from memdiff.rewards.build import build_weighted
from memdiff.rewards.families_config import AestheticConfig

SHORT = (2, 4)  # steps
TOKENS, CHANNELS = 77, 768  # of the prompt's embedding


def measure_simulated_loop(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Peak and FLOPs of one update of `batch` images through `steps`; `again`: each UNet call checkpointed."""
    warnings.filterwarnings("ignore")
    few, more = (_short(steps, settings) for steps in SHORT)
    figures = {}
    for key in ("peak_bytes", "flops"):
        a_step = (more[key] - few[key]) / (SHORT[1] - SHORT[0])
        figures[key] = int(more[key] + a_step * (settings["steps"] - SHORT[1]))
        figures[f"{key}_a_step"] = int(a_step)
    return figures | {"peak_items_short": more["items"]}


def _short(steps: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    with fake_gpu():
        scheduler: Any = DDIMScheduler(**STABLE_DIFFUSION_1.scheduler)
        scheduler.set_timesteps(steps)
        parts = skeleton_parts(STABLE_DIFFUSION_1)
        for network in (parts.unet, parts.vae):
            network.requires_grad_(False)
            network.to(dtype=torch.float16).to(GPU)
        parts.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS))
        trainable = [parameter for parameter in parts.unet.parameters() if parameter.requires_grad]
        text_BLD = torch.empty(2 * settings["batch"], TOKENS, CHANNELS, dtype=torch.float16).to(GPU)
        optimizer = torch.optim.AdamW(trainable, lr=1e-5, foreach=False)
        bare = Bare(parts.unet, parts.vae, scheduler, text_BLD, optimizer, settings["batch"], settings["guidance"])
        weighted = build_weighted([AestheticConfig(kind="aesthetic")], device=GPU, skeleton=True)
        ledger = Ledger(device=GPU)
        ledger.enter((*parts.unet.parameters(), *parts.unet.buffers()), "weights")
        ledger.enter((*parts.vae.parameters(), *parts.vae.buffers()), "decoder")
        scoring = [
            parameter for part in weighted.parts for net in part.reward.networks for parameter in net.parameters()
        ]
        ledger.enter(scoring, "reward")
        with ledger:
            alignprop(bare, again=settings["again"], reward=weighted.parts[0].reward)
    items = {name: size for name, size in ledger.peak.categories.items() if size}
    return {"peak_bytes": ledger.peak_bytes, "flops": sum(ledger.flops.values()), "items": items}
