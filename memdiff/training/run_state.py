"""How far a run has come. No torch."""

import math
from dataclasses import dataclass, field


@dataclass
class RunState:
    """What a checkpoint stores beside the engine's state: plain numbers."""

    round: int = 0
    images: int = 0
    best_reward: float | None = None
    best_round: int | None = None
    statistics: dict[str, list[float]] = field(default_factory=dict)  # of normalised parts, over the rounds so far
    objective: dict[str, list[float]] = field(default_factory=dict)  # what the method has learnt of earlier rounds
    evaluate_statistics: dict[str, list[float]] = field(default_factory=dict)  # the same at the first evaluation
    first: dict[str, float] = field(default_factory=dict)  # what the guards hold later rounds against
    alarm: str | None = None  # the one that ended the run

    def is_best(self, reward: float) -> bool:
        """Whether an evaluation's reward is above all before it; one that is not finite is none."""
        best = self.best_reward
        return math.isfinite(reward) and (best is None or not math.isfinite(best) or reward > best)
