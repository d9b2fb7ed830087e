"""The optimizer's first moments that a checkpoint holds, of all ranks as one vector."""

import re
from pathlib import Path

import torch

from memdiff.engine.pickles import PICKLED
from memdiff.errors import CheckpointError
from memdiff.runtime.placement import HOST

SHARD = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")


def first_moments(checkpoint: Path) -> torch.Tensor:
    """AdamW's first moments in fp64, in the order of the flat masters, whatever the number of ranks was.

    After a first update they are the gradient as it was clipped, times 1 - beta1. Raises CheckpointError where there
    are none.
    """
    shards = {
        int(match[1]): file for file in (checkpoint / "engine").glob("*") if (match := SHARD.fullmatch(file.name))
    }
    if not shards:
        raise CheckpointError(f"{checkpoint} holds no optimizer state")
    with torch.serialization.safe_globals(PICKLED):
        loaded = (torch.load(file, weights_only=True, map_location=HOST) for _, file in sorted(shards.items()))
        states = [state["optimizer_state_dict"] for state in loaded]
    parts = []
    for group in range(len(states[0]["group_paddings"])):
        for state in states:
            moment = state["base_optimizer_state"]["state"][group]["exp_avg"]
            parts.append(moment[: len(moment) - state["group_paddings"][group]].double())
    return torch.cat(parts)
