"""Advantages against a prompt's own rewards, over rounds."""

from typing import Any

import pytest
import torch

from memdiff.methods.experience import Batch, Round
from memdiff.methods.prompt_rewards import PromptRewards
from tests.gradients.test_reinforce import reinforce
from tests.gradients.test_reinforce import round_of as plain_round
from tests.helpers.tiny import tiny_policy


def test_by_hand() -> None:
    """Memory 3. Round 1: a has 2 rewards, b 1, so both use the round's mean 2 and std sqrt(8/3). Round 2: a has 4 and
    keeps its latest three, 2, 3, 7 (mean 4, std sqrt(14/3)); b has 2 and uses the round's mean 20/3."""
    rewards = PromptRewards(3)
    first = rewards.advantages(torch.tensor([0.0, 2.0, 4.0]), ["a", "a", "b"], whiten=True, epsilon=0.0)
    torch.testing.assert_close(first, torch.tensor([-2.0, 0.0, 2.0]) / (8 / 3) ** 0.5)
    second = rewards.advantages(torch.tensor([3.0, 7.0, 10.0]), ["a", "a", "b"], whiten=False, epsilon=0.0)
    torch.testing.assert_close(second, torch.tensor([-1.0, 3.0, 10 - 20 / 3]))
    again = PromptRewards(3)
    again.restore(rewards.latest)
    assert again.latest == {"a": [2.0, 3.0, 7.0], "b": [4.0, 10.0]}
    third = [store.advantages(torch.tensor([1.0]), ["a"], whiten=True, epsilon=1e-6) for store in (rewards, again)]
    assert torch.equal(*third) and third[0] == pytest.approx((1 - 11 / 3) / (56 / 9) ** 0.5, rel=1e-5)


def test_equal_rewards_give_zero() -> None:
    """In fp32 rounding too: ten times 0.1 of a prompt have mean 0.1 and std 0."""
    rewards = PromptRewards(4)
    for _ in range(3):
        advantages = rewards.advantages(torch.full((10,), 0.1), ["a"] * 10, whiten=True, epsilon=1e-6)
        assert float(advantages.abs().max()) == 0


def round_of(policy: Any, prompts: list[str], number: int) -> Round:
    plain = plain_round(policy, len(prompts), number)
    batch = plain.batch
    return Round(Batch(batch.images, prompts, len(prompts), batch.noise, prompts), plain.clock)


@pytest.mark.parametrize("memory", [0, 4])
def test_reinforce_uses_them(memory: int) -> None:
    """With memory 0 each prompt's advantages of a round average 0; with memory 4 they are the store's own."""
    policy = tiny_policy()
    method = reinforce(policy, per_prompt=True, prompt_memory=memory)
    prompts, store = ["a", "b", "a", "b", "a", "a"], PromptRewards(4)
    for number in (1, 2):
        experience = method.collect(policy, round_of(policy, prompts, number))
        if memory:
            truth = store.advantages(experience.rewards_N, prompts, whiten=True, epsilon=1e-6)
            assert torch.equal(experience.advantages_n, truth)
        else:
            for prompt in "ab":
                members = [row for row, other in enumerate(prompts) if other == prompt]
                assert float(experience.advantages_n[members].mean()) == pytest.approx(0, abs=1e-6)
    assert set(method.state()) == ({"a", "b"} if memory else set())
