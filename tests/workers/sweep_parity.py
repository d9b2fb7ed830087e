"""One rank: reward gradients through pieces and DeepSpeed, against one graph a rank."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad

from memdiff.engine.config import OptimizerConfig
from memdiff.engine.ds_config import make_ds_config
from memdiff.engine.engine import DeepSpeedEngine
from memdiff.engine.process_group import start_process_group
from memdiff.methods.alignprop import AlignProp
from memdiff.methods.config import AlignPropConfig, DraftConfig
from memdiff.methods.draft import Draft
from memdiff.processes.ending import leave
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces
from tests.helpers import half_precision
from tests.helpers.half_on_cpu import allow_half
from tests.helpers.one_graph import knobs, round_of, truth_of, waves
from tests.helpers.tiny import CPU, tiny_policy
from tests.workers.engine_parity import rank_and_size

IMAGES, STEPS = 5, 6


def objective_of(kind: str, pieces: Pieces, ranks: Ranks) -> Any:
    """A method with rows of several depths, or of all steps with some graphs kept."""
    if kind == "alignprop":
        return AlignProp(AlignPropConfig(kind="alignprop"), waves(), pieces, ranks, knobs(2))
    return Draft(DraftConfig(kind="draft", last_steps="all"), waves(), pieces, ranks, knobs(2, kept_steps=2))


def probe(ranks: Ranks, *, kind: str, precision: str, offload: bool) -> dict[str, Any]:
    """The relative error of DeepSpeed's reduced gradient, and what the ranks must agree on."""
    policy = tiny_policy(steps=STEPS, clip=True, dtype=torch.float16 if precision == "fp16" else torch.float32)
    config = OptimizerConfig(learning_rate=1e-3, clip_norm=0)
    count = sum(p.numel() for p in policy.trainable().values())
    ds_config = make_ds_config(config, precision=precision, offload=offload, trainable_elements=count)
    engine = DeepSpeedEngine(policy.trainable(), config, ranks, ds_config=ds_config, gradients_on_host=offload)
    algorithm = objective_of(kind, Pieces(engine.gradients), ranks)
    this_round = round_of(policy, IMAGES, ranks=ranks)
    experience = algorithm.collect(policy, this_round)
    metrics = algorithm.differentiate(policy, experience)
    truth = ranks.sum(truth_of(policy, this_round, experience.starts_n).float())
    rounding = 0.0
    if precision == "fp16":
        exact = tiny_policy(steps=STEPS, clip=True)
        half_precision.put_weights(exact, policy)
        in_full = ranks.sum(truth_of(exact, round_of(exact, IMAGES, ranks=ranks), experience.starts_n))
        rounding = half_precision.relative_error([truth], [in_full])
    scale = engine.hand_over()
    read: Any = safe_get_full_grad
    got = torch.cat([(read(p).float() / scale).flatten() for p in policy.trainable().values()])
    engine._engine.step()
    return {
        "error": float((got - truth).norm() / truth.norm()),
        "rounding": rounding,
        "gradient": got[::50].tolist(),
        "rewards": experience.rewards_N.tolist(),
        "costate_norm": metrics["costate_norm"],
        "last_steps_mean": metrics["last_steps_mean"],
    }


def main() -> None:
    """Every mode in one process group."""
    modes = json.loads(sys.argv[1])["modes"]
    if any(mode["precision"] == "fp16" for mode in modes):
        allow_half()
    ranks = Ranks(*rank_and_size(), CPU)
    start_process_group(ranks)
    Path(sys.argv[2]).write_text(json.dumps([probe(ranks, **mode) for mode in modes]))


if __name__ == "__main__":
    main()
    leave()
