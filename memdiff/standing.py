"""How far a run has come. No torch."""

from dataclasses import dataclass


@dataclass
class Standing:
    """What a checkpoint stores beside the engine's state: plain numbers."""

    round: int = 0
    images: int = 0
    best_reward: float | None = None
    best_round: int | None = None
