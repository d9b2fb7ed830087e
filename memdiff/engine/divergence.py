"""Whether all ranks hold the same weights: one integer a parameter, compared before each update.

Shapes: P parameters, W ranks.
"""

from collections.abc import Sequence

import torch

from memdiff.errors import NumericError
from memdiff.runtime.ranks import Ranks

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


def sums_of_bits(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """One integer a parameter, the sum of its elements' bits: one that changes is seen whatever its size: P int64."""
    return torch.stack([p.detach().view(WORDS[p.element_size()]).sum(dtype=torch.int64) for p in parameters])


def refuse_divergence(sums_P: torch.Tensor, names: Sequence[str], ranks: Ranks) -> None:
    """NumericError, on all ranks, naming the first parameter that differs in any bit, and the rank. Collective.

    Cards that overheat and memory without error correction change weights; a rank that went astray would train on in
    silence.
    """
    sums_WP = ranks.gather(sums_P[None], ranks.world_size).cpu()
    usual_P = sums_WP.mode(dim=0).values
    differs_WP = sums_WP != usual_P
    if not bool(differs_WP.any()):
        return
    parameter = int(differs_WP.any(dim=0).nonzero()[0])
    rank = int(differs_WP[:, parameter].nonzero()[0])
    which = f"rank {rank}" if ranks.world_size > 2 else "one of two ranks"
    raise NumericError(
        f"{names[parameter]} is not the same on all ranks ({which} differs): its memory or its arithmetic failed; the "
        "same command goes on from the last checkpoint, on another machine if it comes again"
    )
