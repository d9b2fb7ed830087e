"""From a recipe's `method` to the algorithm."""

from typing import Any, assert_never

from memdiff.memory.knobs import Knobs
from memdiff.methods.config import AlignPropConfig, DraftConfig, MethodConfig, ReflConfig, ReinforceConfig
from memdiff.methods.method import Method
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces


def build_method(
    method: MethodConfig, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs
) -> Method[Any]:
    """The algorithm that a recipe names. Raises ConfigError where the reward has no gradient and it needs one."""
    match method:
        case ReinforceConfig():
            if knobs.one_pass:
                from memdiff.methods.reinforce_one_pass import ReinforceOnePass

                return ReinforceOnePass(method, reward, pieces, ranks, knobs)
            from memdiff.methods.reinforce import Reinforce

            return Reinforce(method, reward, pieces, ranks, knobs)
        case DraftConfig():
            from memdiff.methods.draft import Draft

            return Draft(method, reward, pieces, ranks, knobs)
        case AlignPropConfig():
            from memdiff.methods.alignprop import AlignProp

            return AlignProp(method, reward, pieces, ranks, knobs)
        case ReflConfig():
            from memdiff.methods.refl import Refl

            return Refl(method, reward, pieces, ranks, knobs)
        case _:
            assert_never(method)
