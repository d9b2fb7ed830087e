"""From a round's rewards to REINFORCE's advantages, as a recipe's `method` says.

Shapes: N images over all ranks, K steps.
"""

from collections.abc import Sequence

import torch

from memdiff.chain.advantage import advantages
from memdiff.chain.advantage import spread as std_of
from memdiff.methods.predicted_baseline import step_advantages
from memdiff.methods.prompt_rewards import PromptRewards
from memdiff.methods.reinforce_config import ReinforceConfig


class Advantages:
    """Over all images or over those of a prompt, and what is remembered of prompts."""

    def __init__(self, config: ReinforceConfig) -> None:
        self.config, self._prompt_rewards = config, PromptRewards(config.prompt_memory)

    def of_images(self, rewards_N: torch.Tensor, prompts_N: Sequence[str]) -> torch.Tensor:
        """A_i: N. Remembers the rewards."""
        config = self.config
        kind, epsilon = config.advantage, config.advantage_epsilon
        if config.per_prompt and config.prompt_memory:
            by_prompt_N = self._prompt_rewards.advantages(
                rewards_N, prompts_N, whiten=kind == "whiten", epsilon=epsilon
            )
            return self._clipped(by_prompt_N)
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts_N))}
        groups = [numbers[prompt] for prompt in prompts_N] if config.per_prompt else None
        return advantages(rewards_N, kind=kind, epsilon=epsilon, clip=config.advantage_clip, groups=groups)

    def of_steps(
        self,
        advantages_N: torch.Tensor,
        rewards_N: torch.Tensor,
        values_SN: torch.Tensor,
        steps: Sequence[int],
        chain_steps: int,
        *,
        spread: float | None = None,
    ) -> torch.Tensor:
        """A_ik with the baseline's values of `steps` taken off; of other steps A_i: K N.

        `spread`: how much an advantage of 1 is in the unit of `rewards_N` and the values. None: what whitening did.
        """
        if spread is None:
            whitened, epsilon = self.config.advantage == "whiten", self.config.advantage_epsilon
            # Equal rewards have no slope against the values: any spread gives zero.
            spread = float(std_of(rewards_N, epsilon=epsilon)) or 1.0 if whitened else 1.0
        by_step_KN = advantages_N.repeat(chain_steps, 1)
        by_step_KN[list(steps)] = step_advantages(advantages_N, rewards_N, values_SN, spread=spread)
        return self._clipped(by_step_KN)

    def _clipped(self, unclipped: torch.Tensor) -> torch.Tensor:
        clip = self.config.advantage_clip
        return unclipped if clip is None else unclipped.clamp(-clip, clip)

    def state(self) -> dict[str, list[float]]:
        """The latest rewards of each prompt."""
        return self._prompt_rewards.latest

    def restore(self, state: dict[str, list[float]]) -> None:
        """Takes them up again."""
        self._prompt_rewards.restore(state)
