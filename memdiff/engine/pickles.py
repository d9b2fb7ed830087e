"""What the pickles of a checkpoint may name: a few classes of DeepSpeed, and no code."""

from typing import Any

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from memdiff.errors import CheckpointError


def _stage(owner: type, name: str) -> ZeroStageEnum:
    """In getattr's place, which Python 3.11.0 to 3.11.3 pickle an enum's member by: a stage of ZeRO, nothing else."""
    if owner is not ZeroStageEnum:
        raise CheckpointError(f"a checkpoint asks for {owner!r}.{name}, which is no part of an engine's state")
    return ZeroStageEnum[name]


# For torch.serialization.safe_globals.
PICKLED: list[Any] = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address, (_stage, "builtins.getattr")]
