"""One rank: rounds of SFT-PG on a small model, in plain torch; what ranks must agree on."""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from memdiff.engine.config import OptimizerConfig
from memdiff.methods.build import build_method
from memdiff.methods.config import ReinforceConfig
from memdiff.methods.critic import new_critic
from memdiff.methods.learners_config import CriticConfig, ValueConfig
from memdiff.methods.real_images import RealImages
from memdiff.methods.sft_pg import ShortcutFineTuning
from memdiff.methods.sft_pg_config import SftPgConfig
from memdiff.methods.value_function import new_value_function
from memdiff.processes.ending import leave
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.runtime.vjp import Pieces
from tests.helpers.one_graph import knobs, round_of, waves
from tests.helpers.reference_engine import ReferenceEngine
from tests.helpers.tiny import tiny_policy

IMAGES = 7


def real_images(count: int) -> RealImages:
    """Real images that all differ, the same on every rank."""
    generator = torch.Generator().manual_seed(5)
    return RealImages(torch.rand(count, 1, 8, 8, generator=generator))


def shortcut(policy: Any, ranks: Ranks, **method: Any) -> ShortcutFineTuning:
    """Two critic steps and two updates of ten pairs a round."""
    config = SftPgConfig.model_validate(
        {"kind": "sft_pg", "real": {"kind": "digits"}, "critic_steps": 2, "generator_updates": 2, "minibatch": 10,
         "max_kl": 1e9, **method}
    )  # fmt: skip
    critic = new_critic(CriticConfig(learning_rate=3e-3, widths=(8, 8, 8)), policy.shape, ranks, 1)
    value = new_value_function(ValueConfig(learning_rate=2e-3, width=16), policy.shape, policy.schedule.steps, ranks, 1)
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    return ShortcutFineTuning(config, critic, value, real_images(11), pieces, ranks, knobs(3))


def whole_rounds(
    policy: Any, method: ShortcutFineTuning, engine: ReferenceEngine, rounds: Iterable[int]
) -> dict[str, Any]:
    """As the training loop goes. Returns the last round's numbers."""
    result: dict[str, Any] = {"pairs": []}
    for number in rounds:
        experience = method.collect(policy, round_of(policy, IMAGES, number=number, ranks=method.ranks))
        for part in method.updates(experience):
            result |= method.differentiate(policy, part)
            first = experience.round.batch.images.start
            result["pairs"] += [[number, image + first, step] for image, step in part.pairs]
            result["gradient"] = torch.cat(
                [(method.ranks.sum(total) / method.ranks.world_size).flatten() for total in engine.gradients.sums]
            ).tolist()
            engine.apply(method.rate)
        result |= experience.metrics | {"costs": (-experience.rewards_N).tolist()}
    return result


def results(ranks: Ranks) -> dict[str, Any]:
    """Two rounds: their numbers, and the weights that the networks end with."""
    policy = tiny_policy(steps=4, final_std=0.001)
    method = shortcut(policy, ranks, critic={"noise": 0.2, "noise_draws": 2})
    engine = ReferenceEngine(policy.trainable(), OptimizerConfig(learning_rate=1e-4), ranks)
    method.pieces = Pieces(engine.gradients)
    result = whole_rounds(policy, method, engine, [1, 2])
    weights = {
        name: torch.cat([parameter.detach().flatten() for parameter in learner.parameters])
        for name, learner in method.learners.items()
    }
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights.values())).hexdigest()
    numbers = {key: value for key, value in result.items() if not isinstance(value, torch.Tensor)}
    numbers["step_advantages"] = value_baseline(ranks)
    return numbers | {name: weight.tolist() for name, weight in weights.items()} | {"bits": digest}


def value_baseline(ranks: Ranks) -> list[list[float]]:
    """Of REINFORCE's second round, this rank's columns."""
    policy = tiny_policy(steps=4)
    method = ReinforceConfig.model_validate({"kind": "reinforce", "baseline": "value", "value": {"width": 8}})
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    method: Any = build_method(method, waves(), pieces, ranks, knobs(3), policy)
    method.collect(policy, round_of(policy, IMAGES, ranks=ranks))
    return method.collect(policy, round_of(policy, IMAGES, number=2, ranks=ranks)).step_advantages_Kn.T.tolist()


def main() -> None:
    """Writes what this rank found."""
    dist.init_process_group("gloo")
    ranks = ranks_of_this_process()
    Path(sys.argv[2]).write_text(json.dumps(results(Ranks(ranks.rank, ranks.world_size, torch.device("cpu")))))


if __name__ == "__main__":
    main()
    leave()
