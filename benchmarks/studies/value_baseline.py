"""What a learnt value function takes off REINFORCE's noise: `python -m benchmarks.studies.value_baseline [--seeds 10]`.

The embedded digits, a smooth reward (log-probability of a digit 5-9), DDIM with eta 1. A value function learns from
`--rounds` rounds of the untrained model, which stays as it is. Then each seed makes one round of images; the same
trajectories give the gradient without a baseline and with it. Over the seeds, with g_s the gradient of seed s,

    variance = 1 / (S - 1) sum_s |g_s - mean g|^2

and beside it, without gradients: how much of the advantages' variance is left at each step. Prints and writes
results/value_baseline.json.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import of_tree
from memdiff.chain.noise import Noise, Stream
from memdiff.memory.knobs import MemoryConfig, resolved
from memdiff.methods.build import build_method
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.models.load import load_policy
from memdiff.models.options import ModelOptions
from memdiff.recipe.reading import check_recipe
from memdiff.rewards.build import build_weighted
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces

RESULTS = Path(__file__).parents[1] / "results"
CPU = torch.device("cpu")


def main() -> None:
    """Trains the value function, then measures the gradient with it and without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, default=64, help="Of a round.")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    recipe = check_recipe(
        {
            "model": {"kind": "embedded", "name": "digits"},
            "sampler": {"steps": options.steps, "eta": 1.0},
            "method": {"kind": "reinforce", "baseline": "value", "step_weights": "balanced"},
            "reward": [{"kind": "digits", "mode": "log_probability"}],
        },
        source="benchmarks.studies.value_baseline",
    )
    policy = load_policy(recipe.model, recipe.sampler, ModelOptions(), device=CPU)
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    knobs = resolved(MemoryConfig(micro_batch=64, rollout_batch=64))
    reward = build_weighted(recipe.reward, device=CPU)
    method: Any = build_method(recipe.method, reward, pieces, Ranks(0, 1, CPU), knobs, policy, seed=0)

    def round_of(seed: int, number: int) -> Round:
        noise = Noise(seed=seed, stream=Stream.ROLLOUT, round_number=number, shape=policy.shape)
        return Round(Batch(range(options.images), [""] * options.images, options.images, noise), Clock(CPU))

    def gradient(experience: Any) -> torch.Tensor:
        pieces.gradients.zero()
        method.differentiate(policy, experience)
        return torch.cat([total.flatten() for total in pieces.gradients.sums]).double()

    for number in range(1, options.rounds + 1):
        experience = method.collect(policy, round_of(1000, number))
        print(f"round {number}: value loss {experience.metrics['value_loss']:.3f}", flush=True)
    without, with_value, left = [], [], []
    for seed in range(options.seeds):
        experience = method.collect(policy, round_of(seed, 1))
        left.append(experience.metrics["step_variance_left"])
        with_value.append(gradient(experience))
        without.append(gradient(replace(experience, step_advantages_Kn=None, old_log_probs=None)))
        print(f"seed {seed}: |g| {without[-1].norm():.4g} without, {with_value[-1].norm():.4g} with", flush=True)
    variances = [float(torch.stack(gradients).var(dim=0).sum()) for gradients in (without, with_value)]
    means = [torch.stack(gradients).mean(dim=0) for gradients in (without, with_value)]
    summary = {
        "command": f"python -m benchmarks.studies.value_baseline {' '.join(sys.argv[1:])}".strip(),
        **of_tree(),
        "variance_without": variances[0],
        "variance_with": variances[1],
        "ratio": variances[1] / variances[0],
        "distance_of_means": float((means[1] - means[0]).norm() / means[0].norm()),
        "step_variance_left": [round(value, 3) for value in torch.stack(left).mean(dim=0).tolist()],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "value_baseline.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
