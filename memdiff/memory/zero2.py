"""Bytes of training states on one rank: arithmetic of DeepSpeed's ZeRO-2 (stage_1_and_2.py, 0.19.8). No torch.

P trained elements, W ranks. Per element: working copy 2 (fp16) or 4, fp32 gradient sum 4, and split over the ranks the
fp32 masters 4 and AdamW's two moments 8 (8-bit: 2, with an fp32 scale for every 256 elements of each). An average of
the weights (EMA) is one more fp32 copy of this rank's masters: it lies where they lie, on the GPU or, offloaded, on the
host.
"""

import math
from dataclasses import dataclass

FULL, HALF, DOUBLE = 4, 2, 8  # bytes of an element
BLOCK = 256  # elements that share a scale in bitsandbytes' 8-bit states
ALIGNMENT = 2  # elements a rank: DeepSpeed pads its flat buffers to it


@dataclass(frozen=True)
class States:
    """One rank's bytes; `offloaded` says whether the optimizer's wait in host memory."""

    working_copy: int
    accumulators: int
    optimizer: int  # masters and moments, and the average where there is one
    engine_buckets: int  # what one engine backward and step take besides, for their duration
    engine_resident: int  # DeepSpeed's buffers on the GPU all the time
    set_aside: int  # working copies kept on the GPU while an evaluation runs on the average; 0 without one
    exchanging: int  # beside them while the average takes their place: masters set aside, one parameter gathered
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
    """Of `elements` trained numbers, the largest parameter having `largest_elements`.

    `bucket_elements` is zero_optimization.reduce_bucket_size, allocated in full at every engine backward.
    """
    padded = math.ceil(elements / (ranks * ALIGNMENT)) * ranks * ALIGNMENT
    part = padded // ranks
    moments = 2 * part * FULL if bits == 32 else 2 * (part + math.ceil(part / BLOCK) * FULL)
    copy = HALF if half else FULL
    average = part * FULL if ema else 0
    # The gradients that a rank keeps are those of whole parameters, of which its part may hold an end only.
    kept = 0 if offload else min(elements, part + 2 * largest_elements) * copy
    backward = _backward(elements, ranks=ranks, copy=copy, bucket=bucket_elements, largest=largest_elements, kept=kept)
    step = 0 if offload else _step(part, copy=copy, bits=bits, largest=largest_elements, kept=kept)
    return States(
        working_copy=elements * copy,
        accumulators=elements * FULL,
        optimizer=part * FULL + moments + average,
        engine_buckets=max(backward, step),
        # temp_grad_buffer_for_gpu_offload: as large as the largest parameter, in the working precision.
        engine_resident=largest_elements * copy if offload else 0,
        set_aside=elements * copy if ema else 0,
        exchanging=(0 if offload else average) + largest_elements * FULL if ema else 0,
        offloaded=offload,
    )


def _backward(elements: int, *, ranks: int, copy: int, bucket: int, largest: int, kept: int) -> int:
    """The bucket; one parameter's gradient in fp32 and cast, which goes into it; where there are several ranks, what is
    in it once more, ordered by the rank it goes to, for as long as the process group holds on to it (which is not sure
    to end with the reduction); and the rank's own gradients, which are copied out of it. Where the bucket is filled
    more than once, the last two may be there while it is filled again."""
    one = largest * (FULL + copy)
    gathered = min(bucket, elements) * copy if ranks > 1 else 0
    again = one + kept if elements > bucket else max(one, kept)
    return bucket * copy + gathered + again


def _step(part: int, *, copy: int, bits: int, largest: int, kept: int) -> int:
    """From the rank's gradients (at first the norm of one of them, in fp64) to a flat copy, to that in fp32; then, the
    first two gone, AdamW with the fp32 copy and the square root of the second moment (torch's foreach form, which it
    takes on CUDA; bitsandbytes' kernel needs no copy)."""
    flat = kept + part * copy + (part * FULL if copy != FULL else 0)
    return max(kept + largest * DOUBLE, flat, part * FULL * (2 if bits == 32 else 1))
