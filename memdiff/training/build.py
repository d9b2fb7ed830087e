"""From a recipe to the parts of a run. The one place where rooms meet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memdiff.engine.ds_config import make_ds_config
from memdiff.engine.engine import DeepSpeedEngine, check_precision
from memdiff.memory.knobs import Knobs, MemoryConfig, resolve_by_rules, resolved
from memdiff.memory.offload import offload_idle
from memdiff.methods.build import build_method
from memdiff.methods.method import Method
from memdiff.models.load import load_policy
from memdiff.models.policy import Policy
from memdiff.models.precision import resolve_precision
from memdiff.models.quiet import quiet_libraries
from memdiff.recipe.model_options import model_options
from memdiff.recipe.prompts import PromptSet
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.build import build_weighted
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.host_allocator import keep_freed_memory, return_freed_memory
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces

if TYPE_CHECKING:
    from memdiff.planner.plan import Plan


@dataclass(frozen=True)
class Parts:
    """Everything that a run works with."""

    recipe: Recipe
    ranks: Ranks
    policy: Policy
    prompts: PromptSet
    reward: WeightedReward
    eval_reward: WeightedReward  # the reward's parts and the held-out ones, for evaluation
    held_out: Sequence[str]  # names of the latter
    engine: DeepSpeedEngine
    pieces: Pieces
    method: Method[Any]
    knobs: Knobs
    plan: "Plan | None"  # on GPUs


def build_parts(recipe: Recipe, ranks: Ranks, *, ds_config_file: Path | None = None) -> Parts:
    """Loads and connects all parts on this rank. torch.distributed must be up. Raises ConfigError."""
    recipe.check_world_size(ranks.world_size)
    quiet_libraries()
    if ranks.device.type == "cpu":
        keep_freed_memory()
    else:
        return_freed_memory()
    torch.manual_seed(recipe.run.seed)  # the adapter's start; all other randomness is counter-based
    precision = resolve_precision(recipe.model.precision, ranks.device)
    check_precision(precision)
    plan = _planned(recipe, ranks, precision) if ranks.device.type == "cuda" else None
    options = model_options(recipe, plan.chosen() if plan else resolved(recipe.memory), precision=precision)
    policy = load_policy(recipe.model, recipe.sampler, options, device=ranks.device)
    images = len(ranks.block(recipe.run.images_per_round))
    knobs = plan.chosen() if plan else knobs_for(recipe.memory, policy, images=images)
    reward_device = HOST if knobs.rewards == "cpu" else ranks.device
    reward = build_weighted(recipe.reward, device=reward_device)
    held_out = build_weighted(recipe.evaluate.rewards, device=reward_device)
    return connect(recipe, ranks, policy, reward, held_out, knobs, plan, precision, ds_config_file)


def _planned(recipe: Recipe, ranks: Ranks, precision: str) -> "Plan | None":
    """On GPUs alone: the planner is half as much code as the rest of a run."""
    from memdiff.planner.for_run import plan_of_run

    return plan_of_run(recipe, ranks, precision)


def connect(
    recipe: Recipe,
    ranks: Ranks,
    policy: Policy,
    reward: WeightedReward,
    held_out: WeightedReward,
    knobs: Knobs,
    plan: "Plan | None",
    precision: str,
    ds_config_file: Path | None = None,
) -> Parts:
    """Engine, pieces and method around a policy and its rewards; what is idle leaves the device."""
    trainable = policy.trainable()
    engine = DeepSpeedEngine(
        trainable,
        recipe.optimizer,
        ranks,
        ds_config=make_ds_config(
            recipe.optimizer,
            precision=precision,
            offload=knobs.offload_optimizer,
            trainable_elements=sum(parameter.numel() for parameter in trainable.values()),
            user_file=ds_config_file,
        ),
        gradients_on_host=knobs.accumulators == "host",
    )
    eval_reward = WeightedReward([*reward.parts, *held_out.parts], device=reward.device)
    pieces = Pieces(engine.gradients)
    method = build_method(recipe.method, reward, pieces, ranks, knobs, policy, seed=recipe.run.seed)
    offload_idle(policy, eval_reward, knobs)
    prompts = PromptSet.read(recipe.prompts)
    if ranks.rank == 0:
        policy.warn_of_cuts((*prompts.texts, *prompts.held_out))
    return Parts(
        recipe, ranks, policy, prompts, reward, eval_reward, held_out.names, engine, pieces, method, knobs, plan
    )


def knobs_for(memory: MemoryConfig, policy: Policy, *, images: int) -> Knobs:
    """Every `auto` decided for this policy on its device."""
    channels, height, width = policy.shape
    on_gpu = policy.device.type == "cuda"
    return resolve_by_rules(
        memory,
        pixels=height * width,
        channels=channels,
        element_bytes=policy.dtype.itemsize,
        images=images,
        states=policy.schedule.steps + 1,
        device_bytes=torch.cuda.mem_get_info(policy.device)[1] if on_gpu else None,
    )
