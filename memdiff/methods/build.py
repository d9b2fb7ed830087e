"""From a recipe's `method` to the algorithm, with the networks that it trains beside the model."""

from typing import Any, assert_never

from memdiff.memory.knobs import Knobs
from memdiff.methods.config import (
    AlignPropConfig,
    DraftConfig,
    MethodConfig,
    ReflConfig,
    ReinforceConfig,
    SftPgConfig,
)
from memdiff.methods.method import Method
from memdiff.models.policy import Policy
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces


def build_method(
    method: MethodConfig,
    reward: WeightedReward,
    pieces: Pieces,
    ranks: Ranks,
    knobs: Knobs,
    policy: Policy,
    *,
    seed: int = 0,
    skeleton: bool = False,
) -> Method[Any]:
    """The algorithm that a recipe names.

    `policy` says what networks beside it have to read, `seed` where they start; `skeleton`: without any real images,
    for plans. Raises ConfigError where the reward has no gradient and it needs one, or real images don't fit.
    """
    match method:
        case ReinforceConfig():
            if knobs.one_pass:
                from memdiff.methods.reinforce_one_pass import ReinforceOnePass

                return ReinforceOnePass(method, reward, pieces, ranks, knobs)
            from memdiff.methods.reinforce import Reinforce
            from memdiff.methods.value_baseline import value_baseline

            value = value_baseline(method, policy, ranks, seed) if method.baseline == "value" else None
            return Reinforce(method, reward, pieces, ranks, knobs, value=value)
        case DraftConfig():
            from memdiff.methods.draft import Draft

            return Draft(method, reward, pieces, ranks, knobs)
        case AlignPropConfig():
            from memdiff.methods.alignprop import AlignProp

            return AlignProp(method, reward, pieces, ranks, knobs)
        case ReflConfig():
            from memdiff.methods.refl import Refl

            return Refl(method, reward, pieces, ranks, knobs)
        case SftPgConfig():
            from memdiff.methods.critic import new_critic
            from memdiff.methods.real_images import load_real_images, skeleton_real_images
            from memdiff.methods.sft_pg import ShortcutFineTuning
            from memdiff.methods.value_function import new_value_function

            real = skeleton_real_images(policy.shape) if skeleton else load_real_images(method.real, policy.shape)
            critic = new_critic(method.critic, policy.shape, ranks, seed)
            value = new_value_function(method.value, policy.shape, policy.schedule.steps, ranks, seed)
            return ShortcutFineTuning(method, critic, value, real, pieces, ranks, knobs)
        case _:
            assert_never(method)
