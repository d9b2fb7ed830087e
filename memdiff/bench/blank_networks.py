"""A recipe's networks at random: nothing is initialised on the host, they are filled where they run.

Random weights cost what trained ones do. SDXL's 3.5 x 10^9 of them take a host's core minutes to draw, and a GPU less
than a second.
"""

import math
from collections.abc import Iterable

import torch

from memdiff.memory.knobs import Knobs, resolved
from memdiff.models.load import skeleton_policy
from memdiff.models.policy import Policy
from memdiff.models.precision import resolve_precision
from memdiff.planner.fake_tensors import no_initialisation
from memdiff.recipe.model_options import model_options
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.build import build_weighted
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks
from memdiff.training.build import Parts, connect, knobs_for


def blank_parts(recipe: Recipe, ranks: Ranks, knobs: Knobs | None = None) -> Parts:
    """What memdiff.training.build gives, with random weights. `knobs`: those of a plan; None: the recipe's own."""
    precision = resolve_precision(recipe.model.precision, ranks.device)
    options = model_options(recipe, knobs or resolved(recipe.memory), precision=precision)
    assert not options.keep_base, "a copy of what the networks were before they are filled would be empty"
    with no_initialisation():
        policy = skeleton_policy(recipe.model, recipe.sampler, options, device=ranks.device)
        knobs = knobs or knobs_for(recipe.memory, policy, images=len(ranks.block(recipe.run.images_per_round)))
        device = HOST if knobs.rewards == "cpu" else ranks.device
        reward = build_weighted(recipe.reward, device=device, skeleton=True)
    torch.manual_seed(recipe.run.seed)
    fill_policy(policy)
    fill_reward(reward)
    return connect(recipe, ranks, policy, reward, WeightedReward((), device=device), knobs, None, precision)


def fill_policy(policy: Policy) -> None:
    """Text encoders wait on the host: they are zero, since drawing their numbers there is what takes long."""
    for name, network in policy.networks.items():
        if name.startswith("text_encoder") and policy.device != HOST:
            for parameter in network.parameters():
                parameter.data.zero_()
        else:
            fill(network.named_parameters())


def fill_reward(reward: WeightedReward) -> None:
    """Of all its parts."""
    for network in reward.networks:
        fill(network.named_parameters())


@torch.no_grad()
def fill(parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Matrices and kernels of a variance that keeps activations' size, norms' weights 1, biases 0. In place."""
    for name, parameter in parameters:
        if parameter.ndim > 1:
            parameter.normal_(0.0, 1 / math.sqrt(max(1, parameter[0].numel())))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
