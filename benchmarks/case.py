"""What a benchmark case is: data alone, so that a fresh process can be handed it as JSON. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Measure = Literal["training", "untrained", "plan", "trl_alignprop", "trl_ddpo", "bare", "simulated_loop", "timing"]
Environment = Literal["memdiff", "peers"]


@dataclass(frozen=True)
class Case:
    """One measurement. `settings` go to the function that `measure` names; `about` to the table.

    `environment` is whose Python runs it; `ranks` processes run it together, of `threads` threads each.
    """

    suite: str
    name: str
    measure: Measure
    settings: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    environment: Environment = "memdiff"
    ranks: int = 1
    threads: int = 2
    timeout_s: int = 1800


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` in it, dictionaries inside merged key by key, everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
