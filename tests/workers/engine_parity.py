"""One rank: REINFORCE through pieces and DeepSpeed, against plain autograd on the same trajectory."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from deepspeed.utils import safe_get_full_grad

from memdiff.chain.ddim import log_prob, step_sigma
from memdiff.chain.noise import Noise, Stream
from memdiff.engine.config import OptimizerConfig
from memdiff.engine.ds_config import make_ds_config
from memdiff.engine.engine import DeepSpeedEngine
from memdiff.engine.process_group import start_process_group
from memdiff.memory.knobs import Knobs
from memdiff.methods.config import ReinforceConfig
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.reinforce import Experience, Reinforce
from memdiff.methods.reinforce_one_pass import ReinforceOnePass
from memdiff.models.config import AdapterConfig
from memdiff.processes.ending import leave
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.placement import HOST, place
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.runtime.vjp import Pieces
from tests.helpers import half_precision
from tests.helpers.half_on_cpu import allow_half
from tests.helpers.one_graph import knobs as everything_here
from tests.helpers.tiny import CPU, tiny_policy

IMAGES = 6


class Brightness:
    """A reward that differs between images."""

    differentiable = True
    networks = ()

    def __call__(self, images_BCHW, prompts):
        return images_BCHW.mean(dim=(1, 2, 3))


def knobs(micro_batch: int, **changes: Any) -> Knobs:
    """Knobs at their plain values but for `changes`, with a rollout batch of 3."""
    return everything_here(micro_batch, rollout_batch=3, **changes)


def plain_autograd(policy, experience: Experience, ranks: Ranks, chunk: int, exact=None) -> list[torch.Tensor]:
    """d loss / d parameters, loss = -1/N sum_i A_i sum_k log p, averaged over ranks as 1/W sum of W-fold shares.

    Plain autograd on `chunk` rows at a time, summed in fp32; fp16 under a fixed scale. With `exact`, an fp32 policy of
    the same weights, the means are still the fp16 policy's, and only their gradient is computed in fp32: the difference
    is what fp16's rounding costs a backward on this processor.
    """
    parameters = list((exact or policy).trainable().values())
    totals = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    pairs = [(i, k) for k in policy.schedule.steps_with_density for i in range(experience.trajectory.images)]
    scale = 1024.0 if policy.dtype == torch.float16 else 1.0
    for start in range(0, len(pairs), chunk):
        rows = pairs[start : start + chunk]
        x_t, x_s = experience.trajectory.transitions(rows)
        steps = [k for _, k in rows]
        mean = policy.mean(x_t, steps)
        if exact is not None:
            in_full = exact.mean(x_t.float(), steps)
            mean = in_full + (mean - in_full).detach()
        sigma = step_sigma(steps, policy.schedule, mean)
        if experience.trajectory.is_rounded:  # what was sampled, as the noise has it (test_small_sigma.py)
            batch = experience.round.batch
            drawn = torch.cat([batch.noise.step([batch.images[i]], k) for i, k in rows])
            x_s = mean.detach() + sigma * drawn.to(mean.device)
        value = log_prob(x_s.float(), mean, sigma, reduction="mean")
        advantage = experience.advantages_n[[i for i, _ in rows]]
        loss = -(advantage * value).sum() / IMAGES * scale
        for total, gradient in zip(totals, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient.float() / scale
    return [ranks.sum(total) for total in totals]


class Shared(NamedTuple):
    """What the modes of one precision have in common, since weights and noise are the same: it is computed once."""

    one_graph: list[torch.Tensor]
    rounding: float
    step_advantages: list[list[float]]


def probe(
    ranks: Ranks,
    shared: dict[str, Shared],
    *,
    precision: str,
    bits: Literal[8, 32],
    offload: bool,
    steps: int,
    magnitudes: list[float],
) -> dict:
    """One engine: relative errors, skipped updates and what the ranks must agree on."""
    dtype = torch.float16 if precision == "fp16" else torch.float32
    policy = tiny_policy(steps=steps, dtype=dtype, device=ranks.device, clip=ranks.device.type == "cuda")
    config = OptimizerConfig(learning_rate=1e-3, clip_norm=0, bits=bits)
    count = sum(p.numel() for p in policy.trainable().values())
    ds_config = make_ds_config(config, precision=precision, offload=offload, trainable_elements=count)
    engine = DeepSpeedEngine(policy.trainable(), config, ranks, ds_config=ds_config, gradients_on_host=offload)
    reward = WeightedReward([WeightedPart("brightness", Brightness())], device=ranks.device)
    method = Reinforce(ReinforceConfig(kind="reinforce"), reward, Pieces(engine.gradients), ranks, knobs(16))
    noise = Noise(seed=3, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape)
    block = ranks.block(IMAGES)
    this_round = Round(Batch(block, [""] * len(block), IMAGES, noise), Clock(ranks.device))
    experience = method.collect(policy, this_round)
    truth = plain_autograd(policy, experience, ranks, chunk=16)
    if precision not in shared:
        by_step = ReinforceConfig(kind="reinforce", baseline="predicted_image")
        with_baseline = Reinforce(by_step, reward, Pieces(engine.gradients), ranks, knobs(16)).collect(
            policy, this_round
        )
        assert with_baseline.step_advantages_Kn is not None
        shared[precision] = Shared(
            plain_autograd(policy, experience, ranks, chunk=10**6),
            rounding_of(policy, truth, experience, ranks, steps=steps, clip=ranks.device.type == "cuda"),
            with_baseline.step_advantages_Kn.T.tolist(),
        )
    of_precision = shared[precision]
    method.differentiate(policy, experience)
    sums = [total.clone() for total in engine.gradients.sums]
    scale = engine.hand_over()
    wait(ranks.device)  # with offload DeepSpeed's copies to the host are still under way
    read: Any = safe_get_full_grad
    got = [read(p).float() / scale for p in policy.trainable().values()]
    engine._engine.step()
    skipped = 0
    for magnitude in magnitudes:
        # Sums lie on the host with offload, where NCCL does not reach.
        largest = float(ranks.max(place(torch.stack([total.abs().max() for total in sums]).max(), ranks.device)))
        for target, total in zip(engine.gradients.sums, sums, strict=True):
            target.copy_(total * (magnitude / largest))
        skipped += engine.apply().skipped
    weights = engine.weights()
    return {
        "error": relative(got, truth),
        "error_one_graph": relative(got, of_precision.one_graph),
        "rounding": of_precision.rounding,
        "skipped": skipped,
        "updates": engine.updates,
        "noise": [float(noise.initial([image]).sum()) for image in block],
        "advantages": experience.advantages_n.tolist(),
        "step_advantages": of_precision.step_advantages,
        "gradient": torch.cat([gradient.flatten() for gradient in got])[::50].tolist(),
        "working_copy_error": float(working_copy_error(weights, policy.trainable())),
    }


def working_copy_error(weights: Mapping[str, torch.Tensor], trainable: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Largest difference of the engine's full weights, which are on the host, and the network's own parameters."""
    return torch.stack(
        [(weights[name] - place(p.detach(), HOST).float()).abs().max() for name, p in trainable.items()]
    ).max()


def rounding_of(policy, truth: list[torch.Tensor], experience: Experience, ranks: Ranks, **options: Any) -> float:
    """Relative error of plain fp16's gradient, from fp16's rounding alone; 0 in other precisions."""
    if policy.dtype != torch.float16:
        return 0.0
    exact = tiny_policy(device=ranks.device, **options)
    half_precision.put_weights(exact, policy)
    return relative(truth, plain_autograd(policy, experience, ranks, chunk=16, exact=exact))


def one_pass_errors(ranks: Ranks, dtype: torch.dtype) -> dict[str, float]:
    """Of an adapter's gradient over 5 steps, four images a piece, the last piece of each rank filled up."""
    policy = tiny_policy(steps=5, dtype=dtype, device=ranks.device, adapter=AdapterConfig(rank=2))
    reward = WeightedReward([WeightedPart("brightness", Brightness())], device=ranks.device)
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    config = ReinforceConfig(kind="reinforce", inner_updates=2)  # two, so that the trajectory is kept
    method = ReinforceOnePass(config, reward, pieces, ranks, knobs(4, one_pass=True))
    noise = Noise(seed=3, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape)
    block = ranks.block(IMAGES)
    experience = method.collect(policy, Round(Batch(block, [""] * len(block), IMAGES, noise), Clock(ranks.device)))
    truth = plain_autograd(policy, experience, ranks, chunk=16)
    method.differentiate(policy, experience)
    got = [ranks.sum(total) / ranks.world_size for total in pieces.gradients.sums]
    rounding = rounding_of(policy, truth, experience, ranks, steps=5, adapter=AdapterConfig(rank=2))
    return {"error_one_pass": relative(got, truth), "rounding_one_pass": rounding}


def main() -> None:
    """Runs every engine that the arguments name in one process group."""
    options = json.loads(sys.argv[1])
    ranks = ranks_of_this_process() if options["device"] == "cuda" else Ranks(*rank_and_size(), CPU)
    if ranks.device == CPU and any(mode["precision"] == "fp16" for mode in options["modes"]):
        allow_half()
    # cuDNN rounds fp32 convolutions to TF32 by default, and other batch shapes to other bits: 1e-3, not 1e-5.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    start_process_group(ranks)
    in_one_pass = {"fp32": one_pass_errors(ranks, torch.float32), "fp16": one_pass_errors(ranks, torch.float16)}
    shared: dict[str, Shared] = {}
    results = [
        probe(ranks, shared, steps=options["steps"], magnitudes=options["magnitudes"], **mode)
        | in_one_pass[mode["precision"]]
        for mode in options["modes"]
    ]
    Path(sys.argv[2]).write_text(json.dumps(results))


def wait(device: torch.device) -> None:
    """Until the device has done everything that it was told, on every stream."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rank_and_size() -> tuple[int, int]:
    """As the launcher says."""
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def relative(got: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """|got - truth| / |truth| over all parameters, wherever they lie."""
    a, b = (torch.cat([place(tensor, HOST).flatten().double() for tensor in tensors]) for tensors in (got, truth))
    return float((a - b).norm() / b.norm())


if __name__ == "__main__":
    main()
    leave()
