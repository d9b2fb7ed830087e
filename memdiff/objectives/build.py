"""From a recipe's `method` to the algorithm."""

from typing import Any, assert_never

from memdiff.memory.knobs import Knobs
from memdiff.objectives.config import AlignPropConfig, DraftConfig, MethodConfig, ReflConfig, ReinforceConfig
from memdiff.objectives.objective import Objective
from memdiff.pieces import Pieces
from memdiff.ranks import Ranks
from memdiff.rewards.weighted import WeightedReward


def build_objective(
    method: MethodConfig, reward: WeightedReward, pieces: Pieces, ranks: Ranks, knobs: Knobs
) -> Objective[Any]:
    """The algorithm that a recipe names. Raises ConfigError where the reward has no gradient and it needs one."""
    match method:
        case ReinforceConfig():
            if knobs.one_pass:
                from memdiff.objectives.reinforce_one_pass import ReinforceOnePass

                return ReinforceOnePass(method, reward, pieces, ranks, knobs)
            from memdiff.objectives.reinforce import Reinforce

            return Reinforce(method, reward, pieces, ranks, knobs)
        case DraftConfig():
            from memdiff.objectives.draft import Draft

            return Draft(method, reward, pieces, ranks, knobs)
        case AlignPropConfig():
            from memdiff.objectives.alignprop import AlignProp

            return AlignProp(method, reward, pieces, ranks, knobs)
        case ReflConfig():
            from memdiff.objectives.refl import Refl

            return Refl(method, reward, pieces, ranks, knobs)
        case _:
            assert_never(method)
