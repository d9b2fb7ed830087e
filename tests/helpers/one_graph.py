"""The truth that reward gradients are held to: one autograd graph through everything, and what is needed to ask."""

from collections.abc import Sequence
from typing import Any

import torch

from memdiff.chain.ddim import step_sigma
from memdiff.chain.noise import Noise, Stream
from memdiff.memory.knobs import Knobs, MemoryConfig, resolved
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces
from tests.helpers.tiny import CPU

ALONE = Ranks(0, 1, CPU)
PROMPTS = ("a one", "two", "three of them")


class Waves:
    """A smooth reward without symmetry: sum over pixels of sin(3 x) w, w a fixed wave."""

    differentiable = True
    networks = ()

    def __init__(self, frequency: float = 1.3) -> None:
        self.frequency = frequency

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        flat = images_BCHW.flatten(start_dim=1)
        wave = torch.cos(self.frequency * torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device))
        return (torch.sin(3 * flat) * wave).sum(dim=1)


def waves(*weights: float, chunk: int = 32, device: torch.device = CPU) -> WeightedReward:
    """Parts of different waves."""
    parts = [
        WeightedPart(f"wave{number}", Waves(1.3 + number), weight, chunk)
        for number, weight in enumerate(weights or (1.0,))
    ]
    return WeightedReward(parts, device=device)


def knobs(micro_batch: int = 4, **changes: Any) -> Knobs:
    """Knobs at their plain values but for `changes`, with a rollout batch of 4."""
    return resolved(MemoryConfig(**{"micro_batch": micro_batch, "rollout_batch": 4, **changes}))


def round_of(policy: Any, images: int, *, number: int = 1, ranks: Ranks = ALONE) -> Round:
    """This rank's share of a round, prompts encoded."""
    noise = Noise(seed=7, stream=Stream.ROLLOUT, round_number=number, shape=policy.shape)
    block = ranks.block(images)
    prompts = [PROMPTS[image % len(PROMPTS)] for image in block]
    policy.encode(prompts)
    return Round(Batch(block, prompts, images, noise), Clock(policy.device))


def make(kind: Any, config: Any, policy: Any, reward: WeightedReward | None = None, **changes: Any) -> Any:
    """An objective on one rank with sums of its own."""
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    return kind(config, reward or waves(), pieces, ALONE, knobs(**changes))


def gradient_of(method: Any, policy: Any, this_round: Round) -> tuple[torch.Tensor, dict[str, Any]]:
    """What one update of a round adds to the sums, flat, and its diagnostics."""
    gradients = method.pieces.gradients
    gradients.zero()
    experience = method.collect(policy, this_round)
    (part,) = method.updates(experience)
    metrics = method.differentiate(policy, part)
    return torch.cat([total.flatten() for total in gradients.sums]), metrics | experience.metrics


def flat_gradient(loss: torch.Tensor, policy: Any) -> torch.Tensor:
    """Of a scalar in one graph, with respect to everything that is trained."""
    parameters = list(policy.trainable().values())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gradients, strict=True)]
    )


def chain(policy: Any, this_round: Round, starts: Sequence[int], *, until: int | None = None) -> torch.Tensor:
    """x_0 of all images in one graph, in which each image begins at its own step."""
    batch, schedule = this_round.batch, policy.schedule
    wide = torch.promote_types(policy.dtype, torch.float32)
    x = batch.noise.initial(batch.images).to(wide)
    for step in range(schedule.steps if until is None else until):
        steps = [step] * len(batch.images)
        mean = policy.mean(x, steps, batch.prompts)
        x = mean + step_sigma(steps, schedule, mean) * batch.noise.step(batch.images, step)
        begun = torch.tensor([start <= step for start in starts]).view(-1, 1, 1, 1)
        x = torch.where(begun, x, x.detach())
    return x


def total(reward: WeightedReward, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """sum_p w_p f_p of each image, with a graph."""
    return torch.stack([part.weight * part.reward(images, prompts) for part in reward.parts]).sum(dim=0)


def truth_of(
    policy: Any,
    this_round: Round,
    starts: Sequence[int],
    reward: WeightedReward | None = None,
    *,
    target: float | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """The gradient of the loss of a round through one graph."""
    batch = this_round.batch
    r = total(reward or waves(), policy.decode(chain(policy, this_round, starts)), batch.prompts)
    losses = -r if target is None else torch.relu(target - r)
    return flat_gradient(scale * losses.sum() / batch.num_images, policy)


def distance(got: torch.Tensor, truth: torch.Tensor) -> float:
    """|got - truth| / |truth|."""
    assert truth.norm() > 0
    return float((got.double() - truth.double()).norm() / truth.double().norm())
