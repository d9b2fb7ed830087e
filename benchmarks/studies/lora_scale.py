"""Reward against the scale of an adapter: `python -m benchmarks.studies.lora_scale RUN [--images 128]`.

A scale c samples from W + c dW: 0 is the base, 1 is what was trained, in between lies a path from one to the other
(DRaFT, Clark et al. 2023, section 5.3), and above 1 it goes on. All scales start from the same noise and the same
prompts, so that what differs is c. Scored by the run's own reward and its held-out parts. Writes
results/lora_scale.json and results/lora_scale.png; the last line is JSON.
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.provenance import of_machine
from benchmarks.studies.written import RESULTS, write_study
from memdiff.chain.noise import Noise, Stream
from memdiff.models.load import load_policy
from memdiff.models.options import ModelOptions
from memdiff.models.pixels import to_uint8
from memdiff.models.policy import rollout
from memdiff.models.precision import DTYPES, resolve_precision
from memdiff.models.quiet import quiet_libraries
from memdiff.reporting.grid import image_grid
from memdiff.rewards.build import build_weighted
from memdiff.rewards.weighted_sum import Statistics, WeightedReward
from memdiff.runtime.ranks import ranks_of_this_process
from memdiff.sampling.request import SampleRequest, make_request
from memdiff.training.run_folder import RunFolder

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SHOWN = 8  # images of a row in the picture
CONFIDENCE = 1.96  # standard errors: 95 %


def request_for(run: Path, scale: float, options: argparse.Namespace) -> SampleRequest:
    """What `memdiff sample RUN --lora-scale SCALE` asks for."""
    return make_request(
        str(run), best=options.best, num_images=options.images, batch_size=options.batch_size, steps=None, eta=None,
        guidance=None, seed=options.seed, prompt=None, prompts=options.prompts, lora_scale=scale, mix=(),
        adapter_steps=None, precision="auto", out=None,
    )  # fmt: skip


def sample(request: SampleRequest, device: torch.device) -> torch.Tensor:
    """The images that the request names: N C H W in [0, 1], on the device."""
    options = ModelOptions(DTYPES[resolve_precision(request.precision, device)])
    policy = load_policy(request.model, request.sampler, options, device=device)
    sources = [(Path(adapter.file), adapter.weight) for adapter in request.adapters]
    policy.attach(sources, scale=request.lora_scale, steps=request.adapter_steps)
    images = range(request.num_images)
    prompts = request.prompts_of(images)
    policy.encode(prompts)
    noise = Noise(seed=request.seed, stream=Stream.SAMPLE, round_number=0, shape=policy.shape)
    x_0 = rollout(policy, noise, images, prompts, batch=request.batch_size, storage=policy.dtype)
    with torch.no_grad():
        return policy.decode(x_0)


def measure(run: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    """(a row a scale, the first images of each)."""
    recipe, device = RunFolder(run).recipe(), ranks_of_this_process().device
    reward = build_weighted(recipe.reward, device=device)
    held_out = build_weighted(recipe.evaluate.rewards, device=device)
    eval_reward = WeightedReward([*reward.parts, *held_out.parts], device=device)
    rows, pictures, statistics = [], [], None
    for scale in options.scales:
        request = request_for(run, scale, options)
        images = sample(request, device)
        with torch.no_grad():
            raw_PN = eval_reward.raw(images, request.prompts_of(range(len(images))))
        statistics = statistics or reward.statistics_of(raw_PN[: len(reward.parts)])
        rows.append(row_of(scale, raw_PN, reward, eval_reward.names, statistics))
        pictures.append(to_uint8(images[:SHOWN]).cpu())
    return rows, pictures


def row_of(
    scale: float, raw_PN: torch.Tensor, reward: WeightedReward, names: tuple[str, ...], statistics: Statistics
) -> dict[str, Any]:
    """The total as training counts it (normalised parts by the first scale's statistics), and every part's mean."""
    trained = raw_PN[: len(reward.parts)]
    row = {"scale": scale, "reward": reward.value(trained, statistics), "images": raw_PN.shape[1]}
    row["standard_error"] = float(reward.combine(trained, statistics).std()) / math.sqrt(raw_PN.shape[1])
    return row | {name: float(scores.mean()) for name, scores in zip(names, raw_PN, strict=True)}


def picture(rows: list[dict[str, Any]], pictures: list[torch.Tensor], file: Path) -> None:
    """Left: the same noise under every scale. Right: reward against scale."""
    figure = Figure(figsize=(11, 0.55 * len(rows) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    images_NHWC = torch.cat(pictures).permute(0, 2, 3, 1).numpy()
    grid = image_grid(images_NHWC, columns=len(pictures[0]))
    left.imshow(grid)
    left.set_xticks([])
    left.set_yticks([(index + 0.5) * grid.height / len(rows) for index in range(len(rows))])
    left.set_yticklabels([f"{row['scale']:g}" for row in rows])
    left.set(ylabel="scale of dW", xlabel="images from the same noise, one a column")
    scales, rewards = [row["scale"] for row in rows], [row["reward"] for row in rows]
    errors = [CONFIDENCE * row["standard_error"] for row in rows]
    right.errorbar(scales, rewards, yerr=errors, marker="o", capsize=3)
    right.axvline(1.0, linestyle=":", color="grey", label="as trained")
    right.legend(frameon=False)
    right.set(xlabel="scale of dW", ylabel=f"mean reward of {rows[0]['images']} images, 95 % interval")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Samples and scores at every scale, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder with an adapter")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--prompts", type=Path, help="a file of texts; default: the run's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--best", action="store_true", help="the best evaluated weights")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet_libraries()
    machine = of_machine()
    rows, pictures = measure(options.run, options)
    within = [row["reward"] for row in sorted(rows, key=lambda row: row["scale"]) if 0 <= row["scale"] <= 1]
    summary = {
        "recipe": RunFolder(options.run).recipe().model_dump(mode="json"),
        "monotone_from_0_to_1": all(low < high for low, high in pairwise(within)),
    }
    command = f"python -m benchmarks.studies.lora_scale {options.run} --images {options.images} --seed {options.seed}"
    write_study("lora_scale", command, machine, summary, {"rows": rows}, folder=options.out)
    picture(rows, pictures, options.out / "lora_scale.png")


if __name__ == "__main__":
    main()
