"""How far a run has come. No torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def _are_numbers(value: Any, count: int | None = None) -> bool:
    """A list of them, by name each."""
    return isinstance(value, dict) and all(
        isinstance(numbers, list) and all(map(_is_number, numbers)) and count in (None, len(numbers))
        for numbers in value.values()
    )


KINDS: Mapping[str, Callable[[Any], bool]] = {
    "round": _is_count,
    "images": _is_count,
    "best_reward": lambda value: value is None or _is_number(value),
    "best_round": lambda value: value is None or _is_count(value),
    "statistics": lambda value: _are_numbers(value, 3) and all(math.isfinite(entry[0]) for entry in value.values()),
    "objective": _are_numbers,
    "evaluate_statistics": lambda value: _are_numbers(value, 3),
    "first": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "alarm": lambda value: value is None or isinstance(value, str),
}


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

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "RunState":
        """What a checkpoint's state says. Raises ValueError where it is of another kind: a file may hold anything."""
        values = {name: state[name] for name in KINDS if name in state}
        for name, value in values.items():
            if not KINDS[name](value):
                raise ValueError(f"its state has no usable {name}: {value!r:.60}")
        return cls(**values)

    def is_best(self, reward: float) -> bool:
        """Whether an evaluation's reward is above all before it; one that is not finite is none."""
        best = self.best_reward
        return math.isfinite(reward) and (best is None or not math.isfinite(best) or reward > best)
