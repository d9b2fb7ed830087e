"""What the gradient of a reward costs: live bytes and seconds of a batch of 8 in chunks of 1, 2 and 8.

    python -m benchmarks.studies.rewards          # writes results/rewards.json and rewards.md

The network is LAION aesthetic's: CLIP ViT-L/14 (303 M parameters in its image tower) and the five-layer head, at full
size with random weights, on the CPU in fp32. Each chunk's gradient to the images is pulled before the next chunk is
scored, as in training, so that one chunk's graph is alive at a time.

Physics: a layer of width D over T tokens keeps about 16 T D numbers for its backward (and T^2 a head, where attention
is not fused), 24 layers keep 24 times that, an image. Checkpointing keeps T D a layer, and one layer whole. Weights are
the same in every row. So bytes should go down almost 8-fold from chunk 8 to chunk 1.

Shapes: B images of 256 x 256 pixels.
"""

import argparse
import time
from dataclasses import asdict, dataclass

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.provenance import of_machine
from benchmarks.studies.written import write_study
from memdiff.planner.ledger import Ledger
from memdiff.rewards.clip import ClipReward, ImageTower
from memdiff.rewards.clip_heads import AestheticHead
from memdiff.rewards.pretrained import checkpoint_layers, freeze
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces

CPU = torch.device("cpu")
BATCH = 8
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One measurement. `peak_bytes` beyond weights and images; differences are relative to the first row."""

    chunk: int
    checkpointing: bool
    peak_bytes: int
    seconds: float
    score_difference: float
    gradient_difference: float


def aesthetic(*, checkpointing: bool) -> ClipReward:
    """The full-size reward with seeded random weights."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    network, head = CLIPVisionModelWithProjection(config), AestheticHead(768)
    for module in (network, head):
        freeze(module, torch.float32, CPU)
    if checkpointing:
        checkpoint_layers(network.vision_model.encoder.layers)
    return ClipReward(ImageTower(network, "crop", torch.float32), head)


def gradient(reward: ClipReward, images_B3HW: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, B, and the gradient of their sum to the images, B 3 H W, chunk by chunk."""
    pieces, scores, gradients = Pieces(Gradients([])), [], []
    for chunk_B3HW in images_B3HW.split(chunk):
        leaf = chunk_B3HW.clone().requires_grad_()
        scores_B, pull = pieces.vjp(lambda x: reward(x, [""] * len(x)), leaf, keep=True)
        scores.append(scores_B)
        gradients.append(pull(torch.ones_like(scores_B)))
    return torch.cat(scores), torch.cat(gradients)


def measure() -> tuple[list[Row], int]:
    """All rows, and the bytes of the weights."""
    images_B3HW = torch.rand(BATCH, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    rows, truth, weight_bytes = [], None, 0
    for checkpointing in (False, True):
        reward = aesthetic(checkpointing=checkpointing)
        weight_bytes = sum(p.numel() * p.element_size() for module in reward.networks for p in module.parameters())
        for chunk in (8, 2, 1):
            start = time.perf_counter()
            with Ledger() as ledger:
                gradients = gradient(reward, images_B3HW, chunk)
            seconds = time.perf_counter() - start
            truth = truth or gradients
            differences = [_relative(got, want) for got, want in zip(gradients, truth, strict=True)]
            rows.append(Row(chunk, checkpointing, ledger.peak_bytes, seconds, *differences))
            print(rows[-1], flush=True)
    return rows, weight_bytes


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def table(rows: list[Row], weight_bytes: int) -> str:
    """The rows in Markdown, and what they mean."""
    lines = [
        "# Bytes and seconds of a reward's gradient",
        "",
        "LAION aesthetic at full size (CLIP ViT-L/14 and its head, random weights), fp32, a batch of 8 images of",
        "256 x 256, gradient to the images, each chunk pulled before the next. Peak: live bytes by",
        f"`memdiff/planner/ledger.py` beyond the {weight_bytes / MIB:,.0f} MiB of weights and the images. Differences:",
        "relative L2 against the first row, fp32 rounding of kernels of other shapes. Seconds: wall time on a machine",
        "that other jobs used too, so rows don't compare. Versions, commit: `rewards.json`.",
        "",
        "| chunk | checkpointing | peak (MiB) | seconds | scores differ by | gradients differ by |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.chunk} | {'on' if row.checkpointing else 'off'} | {row.peak_bytes / MIB:,.1f} | {row.seconds:.1f} "
        f"| {row.score_difference:.1e} | {row.gradient_difference:.1e} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures and writes the results."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    machine = of_machine()
    rows, weight_bytes = measure()
    content = {"rows": [asdict(row) for row in rows], "weight_bytes": weight_bytes}
    command = "python -m benchmarks.studies.rewards"
    write_study("rewards", command, machine, {"batch": BATCH}, content, table(rows, weight_bytes))


if __name__ == "__main__":
    main()
