"""Loops of bare diffusers and autograd, and the floor under all of them. Runs in either environment.

    alignprop       every step's graph kept until one backward: what a first script does
    alignprop_checkpointed   each UNet call under torch's checkpoint: what TRL does
    ddpo            sample without a graph, then a forward and backward of every step
    floor           the same UNet calls with nothing around them: `forwards` without a graph, then `pulls`, each a
                    forward with a graph and its backward. No decoder, reward, scheduler, optimizer

All are guided: a UNet call has twice `batch` rows. LoRA r=4 on the same layers as TRL's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from torch.utils.checkpoint import checkpoint

from benchmarks.measuring import Phase, bytes_of, seconds_of
from benchmarks.peers.brightness import PROMPTS, score

CPU = torch.device("cpu")
Reward = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


@dataclass
class Bare:
    """A pipeline's networks, the embeddings of its prompts and an optimizer of its LoRA."""

    unet: Any
    vae: Any
    scheduler: Any
    text_BLD: torch.Tensor  # of the empty prompt, `batch` rows, and of the prompts
    optimizer: torch.optim.Optimizer
    batch: int
    guidance: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of x_t, B C H W."""
        return (self.batch, self.unet.config.in_channels, *(self.unet.config.sample_size,) * 2)

    def predict(self, x_BCHW: torch.Tensor, timestep: torch.Tensor, *, again: bool = False) -> torch.Tensor:
        """The guided prediction; `again`: its graph is made again in the backward."""
        both = torch.cat([x_BCHW, x_BCHW])
        if again:
            both = checkpoint(self.unet, both, timestep, self.text_BLD, use_reentrant=False)[0]
        else:
            both = self.unet(both, timestep, self.text_BLD, return_dict=False)[0]
        without, with_text = both.chunk(2)
        return without + self.guidance * (with_text - without)

    def finish(self) -> None:
        """One optimizer step on what .grad holds."""
        parameters = self.optimizer.param_groups[0]["params"]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def load(settings: Mapping[str, Any]) -> Bare:
    """The pipeline of all peers."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(settings["pipeline"], safety_checker=None)
    torch.manual_seed(0)
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.requires_grad_(False)
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=TARGETS))
    trainable = [p for p in pipeline.unet.parameters() if p.requires_grad]
    texts = [""] * settings["batch"] + [PROMPTS[i % len(PROMPTS)] for i in range(settings["batch"])]
    tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        text_BLD = pipeline.text_encoder(tokens)[0]
    scheduler: Any = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(settings["steps"])
    optimizer = torch.optim.AdamW(trainable, lr=1e-5)
    return Bare(pipeline.unet, pipeline.vae, scheduler, text_BLD, optimizer, settings["batch"], settings["guidance"])


def alignprop(bare: Bare, *, again: bool, reward: Reward = score) -> None:
    """Through the whole chain in one graph."""
    x = torch.randn(bare.shape, dtype=bare.text_BLD.dtype).to(bare.text_BLD.device)
    for timestep in bare.scheduler.timesteps:
        prediction = bare.predict(x, timestep, again=again)
        x = bare.scheduler.step(prediction, timestep, x, eta=1.0).prev_sample
    images = bare.vae.decode(x / bare.vae.config.scaling_factor).sample
    rewards_B = reward((images / 2 + 0.5).clamp(0, 1), PROMPTS[: bare.batch])
    (-rewards_B.mean()).backward()
    bare.finish()


def ddpo(bare: Bare) -> None:
    """A round of one batch: sampled, scored, then one step's graph at a time."""
    x = torch.randn(bare.shape, dtype=bare.text_BLD.dtype).to(bare.text_BLD.device)
    states = [x]
    with torch.no_grad():
        for timestep in bare.scheduler.timesteps:
            x = bare.scheduler.step(bare.predict(x, timestep), timestep, x, eta=1.0).prev_sample
            states.append(x)
        images = bare.vae.decode(x / bare.vae.config.scaling_factor).sample
        rewards_B = score((images / 2 + 0.5).clamp(0, 1), PROMPTS)
        advantages_B = (rewards_B - rewards_B.mean()) / (rewards_B.std() + 1e-6)
    for index, timestep in enumerate(bare.scheduler.timesteps):
        prediction = bare.predict(states[index], timestep)
        # The mean of p(x_s | x_t): the scheduler's step without its noise.
        zero = torch.zeros(bare.shape)
        mean = bare.scheduler.step(prediction, timestep, states[index], eta=1.0, variance_noise=zero).prev_sample
        before = timestep - bare.scheduler.config.num_train_timesteps // len(bare.scheduler.timesteps)
        variance = bare.scheduler._get_variance(timestep, before)
        log_prob_B = -((states[index + 1] - mean) ** 2 / (2 * variance)).mean(dim=(1, 2, 3))
        (-(advantages_B * log_prob_B).mean()).backward()
    bare.finish()


def floor(bare: Bare, *, forwards: int, pulls: int, to_x: bool) -> None:
    """UNet calls alone; `to_x`: the backward also gives d/dx, as a chain needs it."""
    rows = torch.randn(2 * bare.batch, *bare.shape[1:])
    timestep = bare.scheduler.timesteps[0]
    parameters = bare.optimizer.param_groups[0]["params"]
    with torch.no_grad():
        for _ in range(forwards):
            bare.unet(rows, timestep, bare.text_BLD)
    for _ in range(pulls):
        x = rows.detach().requires_grad_(to_x)
        y = bare.unet(x, timestep, bare.text_BLD, return_dict=False)[0]
        torch.autograd.grad(y, [*parameters, *([x] if to_x else [])], rows)


def measure_bare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One update of `loop`."""
    bare = load(settings)
    steps, kind = settings["steps"], settings["loop"]

    def update(phase: Phase) -> None:
        with phase("update"):
            if kind == "ddpo":
                ddpo(bare)
            elif kind == "floor":
                floor(bare, forwards=settings["forwards"], pulls=steps, to_x=settings["to_x"])
            else:
                alignprop(bare, again=kind == "alignprop_checkpointed")

    weights = [tensor for network in (bare.unet, bare.vae) for tensor in (*network.parameters(), *network.buffers())]
    seconds = seconds_of(update, updates=settings["updates"], warmup=settings["warmup"], device=CPU)
    return seconds | bytes_of(update, device=CPU, weights=weights)
