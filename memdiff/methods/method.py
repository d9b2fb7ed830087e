"""What the training loop knows of an algorithm.

Shapes: N images over all ranks, P reward parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch

from memdiff.chain.noise import Noise
from memdiff.methods.experience import Metrics, Round
from memdiff.methods.learner import Learner
from memdiff.models.policy import Policy


class Outcome(Protocol):
    """What is known of a round once its last part has been differentiated; the same on every rank."""

    raw_PN: torch.Tensor  # every part's scores of all ranks' images
    rewards_N: torch.Tensor  # their weighted sum
    metrics: Metrics


E = TypeVar("E", bound=Outcome)


class Method(Protocol[E]):
    """One algorithm. A round: `collect`, then for each of `updates` one `differentiate`, after which the loop applies.

    `rate` multiplies the learning rate of the model's updates, as it stands when an update is applied.

    Gradients go to the pieces' sums: W times this rank's share of the gradient of the loss, whose images are averaged
    over all ranks, since the engine averages over W ranks.
    """

    rate: float

    @property
    def learners(self) -> Mapping[str, Learner[Any]]:
        """Networks that it trains beside the model, equal on every rank; a checkpoint holds them."""
        ...

    def collect(self, policy: Policy, this_round: Round) -> E:
        """Whatever has to be known before the first update."""
        ...

    def updates(self, experience: E) -> Iterator[E]:
        """The parts of a round that get an optimizer update each, which may be none. Updates are applied in between."""
        ...

    def differentiate(self, policy: Policy, part: E, /) -> Metrics:
        """Adds the gradient of the loss to the pieces' sums; returns diagnostics over all ranks. Collective."""
        ...

    def rehearse(self, policy: Policy, noise: Noise, images: int, prompts: Sequence[str]) -> None:
        """One piece of every kind at its full batch, on noise. Adds to the sums; the caller clears them.

        `images` are denoised at once; `prompts` are encoded, any number from 1. Raises ConfigError where the chain and
        the algorithm don't fit.
        """
        ...

    def halve(self) -> None:
        """Half the rows in a piece from here on. Raises OutOfMemoryError where it is one already."""
        ...

    def passes(self, policy: Policy) -> int:
        """Image-steps that a round takes for each image, for the progress bar."""
        ...

    def state(self) -> dict[str, list[float]]:
        """What it has learnt of earlier rounds, as JSON: equal on every rank, empty where there is nothing."""
        ...

    def restore(self, state: dict[str, list[float]]) -> None:
        """Takes up what `state` gave."""
        ...
