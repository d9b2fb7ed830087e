"""Advantages against a prompt's own rewards, remembered over rounds (Black et al. 2023, section 4.3, as in its code).

    A_i = (r_i - mean) / std,        0 where std is no more than epsilon of the largest |r|

Mean and population std are those of the prompt's latest `memory` rewards, these ones among them; until it has as many,
those of the whole round. Easy and hard prompts then do not drown each other, though a round has few images of each.

Shapes: N images of a round over all ranks.
"""

import math
from collections.abc import Mapping, Sequence

import torch


class PromptRewards:
    """The latest rewards of each prompt. Every rank sees all of a round, so all remember the same."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.latest: dict[str, list[float]] = {}

    def advantages(
        self, rewards_N: torch.Tensor, prompts_N: Sequence[str], *, whiten: bool, epsilon: float
    ) -> torch.Tensor:
        """Takes in a round's rewards and returns their advantages: N fp32. `whiten` false: r - mean."""
        rewards = rewards_N.tolist()
        for prompt, reward in zip(prompts_N, rewards, strict=True):
            self.latest[prompt] = [*self.latest.get(prompt, ()), reward][-self.memory :]
        known = {prompt: self.latest[prompt] for prompt in set(prompts_N) if len(self.latest[prompt]) == self.memory}
        of_round = _mean_and_std(rewards, epsilon)
        of_prompt = {prompt: _mean_and_std(latest, epsilon) for prompt, latest in known.items()}
        advantage_values = []
        for prompt, reward in zip(prompts_N, rewards, strict=True):
            mean, std = of_prompt.get(prompt, of_round)
            centered = reward - mean
            advantage_values.append((centered / std if std else 0.0) if whiten else centered)
        return rewards_N.new_tensor(advantage_values)

    def restore(self, latest: Mapping[str, Sequence[float]]) -> None:
        """Takes up another's `latest`."""
        self.latest = {prompt: list(rewards) for prompt, rewards in latest.items()}


def _mean_and_std(values: Sequence[float], epsilon: float) -> tuple[float, float]:
    """Exact for equal values: each is the mean. A std of no more than `epsilon` of the largest |value| is 0."""
    if max(values) == min(values):
        return values[0], 0.0
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return mean, std if std > epsilon * max(map(abs, values)) else 0.0
