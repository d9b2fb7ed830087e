"""Bytes of training states on one rank: arithmetic of DeepSpeed's ZeRO-2 (stage_1_and_2.py, 0.19.8). No torch.

P trained elements, W ranks. Per element: working copy 2 (fp16) or 4, fp32 gradient sum 4, and split over the ranks the
fp32 masters 4 and AdamW's two moments 8 (8-bit: 2, with an fp32 scale for every 256 elements of each).
"""

import math
from dataclasses import dataclass

FULL, HALF = 4, 2  # bytes of an element
BLOCK = 256  # elements that share a scale in bitsandbytes' 8-bit states
ALIGNMENT = 2  # elements a rank: DeepSpeed pads its flat buffers to it


@dataclass(frozen=True)
class States:
    """One rank's bytes; `host` says which of them wait in host memory."""

    working_copy: int
    accumulators: int
    optimizer: int  # masters and moments, and the average where there is one
    engine_buckets: int  # what one engine backward and step take besides, for their duration
    offloaded: bool

    @property
    def optimizer_on_gpu(self) -> int:
        """Masters and moments on the GPU all the time."""
        return 0 if self.offloaded else self.optimizer


def training_states(
    elements: int,
    *,
    ranks: int,
    half: bool,
    bits: int,
    ema: bool,
    offload: bool,
    bucket_elements: int,
    largest_elements: int,
) -> States:
    """Of `elements` trained numbers, the largest parameter having `largest_elements`."""
    padded = math.ceil(elements / (ranks * ALIGNMENT)) * ranks * ALIGNMENT
    part = padded // ranks
    moments = 2 * part * FULL if bits == 32 else 2 * (part + math.ceil(part / BLOCK) * FULL)
    copy = HALF if half else FULL
    # Handing over one parameter: its fp32 sum, scaled, then cast; the bucket that is reduced; this rank's gradients in
    # the working precision and, for the step, in fp32; and what is gathered afterwards.
    buckets = largest_elements * (FULL + copy) + bucket_elements * copy + part * copy
    buckets += 0 if offload else part * FULL
    return States(
        working_copy=elements * copy,
        accumulators=elements * FULL,
        optimizer=part * FULL + moments + (part * FULL if ema else 0),
        engine_buckets=buckets,
        offloaded=offload,
    )
