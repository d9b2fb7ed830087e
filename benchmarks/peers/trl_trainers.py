"""TRL 0.23.1's AlignPropTrainer and DDPOTrainer, one update at a time. Runs in the peers' environment.

Nothing of TRL is changed: its own pipeline wrapper (LoRA r=4, alpha 4 on to_q to_k to_v to_out.0), its own step.
AlignProp differentiates every step: no random truncation, and a truncation step of 0 that no step is below.

On a CUDA device accelerate places the trainers there; `mixed_precision: fp16` is accelerate's: UNet and VAE in fp16,
LoRA in fp32 under a gradient scaler. What a card gives is not compared with what a CPU gives.
"""

import itertools
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.measuring import Phase, bytes_of, seconds_of
from benchmarks.peers.brightness import PROMPTS, score


def measure_alignprop(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One update of `batch` images through all `steps`."""
    from trl import AlignPropConfig, AlignPropTrainer  # pyright: ignore[reportMissingImports]

    config = AlignPropConfig(
        mixed_precision=settings.get("mixed_precision", "no"),
        sample_num_steps=settings["steps"],
        sample_guidance_scale=settings["guidance"],
        train_batch_size=settings["batch"],
        train_learning_rate=1e-5,
        truncated_backprop_rand=False,
        truncated_backprop_timestep=0,
        project_kwargs={"project_dir": tempfile.mkdtemp()},
    )
    return _measured(AlignPropTrainer, config, _direct_reward, settings)


def measure_ddpo(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One round of `batch` images: sampled, scored, and one update on all steps."""
    from trl import DDPOConfig, DDPOTrainer  # pyright: ignore[reportMissingImports]

    config = DDPOConfig(
        mixed_precision=settings.get("mixed_precision", "no"),
        sample_num_steps=settings["steps"],
        sample_guidance_scale=settings["guidance"],
        sample_batch_size=settings["batch"],
        sample_num_batches_per_epoch=1,
        train_batch_size=settings["batch"],
        train_learning_rate=1e-5,
        project_kwargs={"project_dir": tempfile.mkdtemp()},
    )
    return _measured(DDPOTrainer, config, _direct_reward, settings)


def _direct_reward(images: torch.Tensor, prompts: Sequence[str], metadata: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    del metadata
    return score(images, prompts), {}


def _measured(trainer_class: Any, config: Any, reward: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    from accelerate import PartialState
    from trl import DefaultDDPOStableDiffusionPipeline  # pyright: ignore[reportMissingImports]

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    PartialState()  # TRL's pipeline logs through accelerate, which wants to know its process first
    pipeline = DefaultDDPOStableDiffusionPipeline(settings["pipeline"], use_lora=True)
    prompts = itertools.cycle(PROMPTS)
    trainer = trainer_class(config, reward, lambda: (next(prompts), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    numbers = itertools.count()

    def update(phase: Phase) -> None:
        with phase("update"):
            trainer.step(0, next(numbers))  # epoch 0 is never saved

    networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    weights = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    device = trainer.accelerator.device
    seconds = seconds_of(update, updates=settings["updates"], warmup=settings["warmup"], device=device)
    if not settings.get("ledger", True):
        return seconds
    return seconds | bytes_of(update, device=device, weights=weights)
