"""One update's seconds: memdiff, the UNet calls alone, a bare loop. On a CUDA device, or a CPU for a dry run.

memdiff    the training code on networks at random; seconds by phase; the share of time in which the device is idle
floor      diffusers' UNet under the same number of calls of the same rows, with nothing around them: calls without
           a graph, then calls with one and their backward. What is below it can't be had with these calls
bare       loops of plain diffusers and autograd on the same shapes (benchmarks.peers.bare)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from peft import LoraConfig

from benchmarks.gpu.idle import profiled
from benchmarks.measures.planning import changed_recipe
from benchmarks.measuring import Phase, seconds_of
from benchmarks.peers.bare import TARGETS, Bare, alignprop, ddpo
from memdiff.bench.blank_networks import blank_parts, fill
from memdiff.engine.process_group import start_process_group
from memdiff.memory.knobs import Knobs, resolved
from memdiff.methods.experience import Clock
from memdiff.methods.workload import Chain
from memdiff.models.architectures import DDPMS, LATENTS
from memdiff.models.latent_files import read_architecture, skeleton_parts
from memdiff.models.load import embedded_source
from memdiff.models.source import read_config
from memdiff.planner.fake_tensors import no_initialisation
from memdiff.recipe.recipe import Recipe
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.training.loop import new_round
from memdiff.training.progress import RunProgress

TOKENS = 77
TIME_IDS = 6  # of SDXL: sizes and crops


def measure_timing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`recipe_file` with `changes`; `who` memdiff, floor or bare; `updates` timed after `warmup`; `profile` a file."""
    ranks = ranks_of_this_process()
    if settings["t4"]:
        attend_as_a_t4(ranks.device)
    recipe = changed_recipe(settings)
    match settings["who"]:
        case "memdiff":
            return memdiff_update(recipe, ranks, settings)
        case "floor":
            floor = Floor.of(recipe, ranks.device)
            update = floor.run
        case _:
            bare = bare_networks(recipe, ranks.device)
            loop: Callable[[], None] = (
                (lambda: ddpo(bare)) if recipe.method.kind == "reinforce" else lambda: alignprop(bare, again=True)
            )
            update = loop
    figures = seconds_of(
        lambda _: update(), updates=settings["updates"], warmup=settings["warmup"], device=ranks.device
    )
    return figures | {"images_per_second": recipe.run.images_per_round / figures["seconds_update"]}


def attend_as_a_t4(device: torch.device) -> None:
    """Memory-efficient attention alone: a T4 has no flash attention, and cuDNN's is not for it either."""
    if device.type == "cuda":
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)


def memdiff_update(recipe: Recipe, ranks: Ranks, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A round at a time, as the training loop runs them, its clock read when all is done."""
    start_process_group(ranks)
    parts = blank_parts(recipe, ranks)
    numbers, clocks = count(1), []
    with RunProgress(rounds=1, shown=False) as progress:

        def update(_: Phase | None = None) -> None:
            clock = Clock(ranks.device)
            clocks.append(clock)
            experience = parts.method.collect(parts.policy, new_round(parts, next(numbers), clock, progress))
            for part in parts.method.updates(experience):
                parts.method.differentiate(parts.policy, part)
                with clock.phase("apply"):
                    parts.engine.apply(parts.method.rate)

        figures = seconds_of(update, updates=settings["updates"], warmup=settings["warmup"], device=ranks.device)
        figures["seconds_phases"] = dict(clocks[-1].read())
        trace = settings.get("profile")
        figures |= profiled(update, ranks.device, Path(trace) if trace else None)
    return figures | {
        "images_per_second": recipe.run.images_per_round / figures["seconds_update"],
        "knobs": vars(parts.knobs),
        "pieces_redone": parts.pieces.redone,
    }


@dataclass
class Floor:
    """Diffusers' UNet, what is trained in it, and how often it is called."""

    unet: Any
    parameters: list[torch.Tensor]
    arguments: Mapping[str, Any]
    rows_BCHW: torch.Tensor
    forwards: int
    pulls: int
    to_x: bool  # the backward also gives d/dx, as a chain needs it

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> "Floor":
        """As many calls as the recipe's round makes, of as many rows as its pieces have."""
        knobs, images = resolved(recipe.memory), recipe.run.images_per_round
        dtype = torch.float16 if recipe.model.precision == "fp16" else torch.float32
        unet = plain_unet(recipe, device, dtype)
        parameters = trained(unet, lora=recipe.adapter is not None)
        guided = 2 if recipe.sampler.guidance is not None else 1
        side, rows = unet.config.sample_size, guided * knobs.micro_batch
        forwards, pulls = calls_of(recipe, knobs, images)
        x_BCHW = torch.randn(rows, unet.config.in_channels, side, side, device=device).to(dtype)
        if recipe.model.channels_last:
            unet, x_BCHW = (it.to(memory_format=torch.channels_last) for it in (unet, x_BCHW))
        arguments = random_arguments(unet, rows, device, dtype)
        return cls(unet, parameters, arguments, x_BCHW, forwards, pulls, recipe.method.kind != "reinforce")

    def run(self) -> None:
        """The calls of one update."""
        rows_BCHW = self.rows_BCHW
        with torch.no_grad():
            for _ in range(self.forwards):
                self.unet(rows_BCHW, 500, **self.arguments)
        for _ in range(self.pulls):
            x_BCHW = rows_BCHW.detach().requires_grad_(self.to_x)
            y_BCHW = self.unet(x_BCHW, 500, **self.arguments, return_dict=False)[0]
            torch.autograd.grad(y_BCHW, [*self.parameters, *([x_BCHW] if self.to_x else [])], rows_BCHW)


def calls_of(recipe: Recipe, knobs: Knobs, images: int) -> tuple[int, int]:
    """(calls without a graph, calls with one and a backward) of `micro_batch` images each, in a round.

    What is pulled has a forward of its own: the rollout's where its graph is kept or taken in one pass, else another.
    """
    steps = recipe.sampler.steps
    noisy = steps if recipe.sampler.eta else 0
    work = recipe.method.workload(Chain(steps, noisy, images=images), knobs)
    pieces = -(-images // knobs.micro_batch)
    of_the_rollout = work.pulled - work.again if work.by_micro_batch or work.in_one_pass else 0
    return round(pieces * (work.rolled - of_the_rollout)), round(pieces * work.pulled)


def plain_unet(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' own, at random, none of memdiff's layers in it."""
    model = embedded_source(recipe.model) if recipe.model.kind == "embedded" else recipe.model
    with no_initialisation():
        if model.kind == "ddpm":
            config = DDPMS.get(model.path) or read_config(UNet2DModel, model.path, part="unet", revision=None)
            unet: Any = UNet2DModel(**config)
        else:
            unet = UNet2DConditionModel(**(LATENTS.get(model.path) or read_architecture(model)).unet)
    unet.to(device=device, dtype=dtype).eval()
    fill(unet.named_parameters())
    return unet


def trained(unet: Any, *, lora: bool) -> list[torch.Tensor]:
    """All of it, or LoRA r=4 on the attention's layers."""
    if not lora:
        return list(unet.requires_grad_(True).parameters())
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=TARGETS))
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def random_arguments(unet: Any, rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a text-to-image UNet takes beside x and the timestep; nothing for others."""
    config = unet.config
    if "cross_attention_dim" not in config:
        return {}
    arguments: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(rows, TOKENS, config["cross_attention_dim"], device=device).to(dtype)
    }
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
        arguments["added_cond_kwargs"] = {
            "text_embeds": torch.randn(rows, pooled, device=device).to(dtype),
            "time_ids": torch.full((rows, TIME_IDS), 512.0, device=device).to(dtype),
        }
    return arguments


def bare_networks(recipe: Recipe, device: torch.device) -> Bare:
    """A pipeline's networks at random, LoRA r=4; the decoder runs in fp32 where the UNet does, else in fp16."""
    dtype = torch.float16 if recipe.model.precision == "fp16" else torch.float32
    model: Any = embedded_source(recipe.model) if recipe.model.kind == "embedded" else recipe.model
    architecture = LATENTS.get(model.path) or read_architecture(model)
    with no_initialisation():
        parts = skeleton_parts(architecture)
    for network in (parts.unet, parts.vae):
        network.requires_grad_(False).to(device=device, dtype=dtype).eval()
        fill(network.named_parameters())
    parameters = trained(parts.unet, lora=True)
    scheduler: Any = DDIMScheduler(**architecture.scheduler)
    scheduler.set_timesteps(recipe.sampler.steps)
    batch = recipe.run.images_per_round
    text_BLD = random_arguments(parts.unet, 2 * batch, device, dtype)["encoder_hidden_states"]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    return Bare(parts.unet, parts.vae, scheduler, text_BLD, optimizer, batch, recipe.sampler.guidance or 1.0)
