"""A small network that a method trains beside the model: the same on every rank, with an optimizer of its own.

    loss.backward(inputs=learner.parameters)    # adds to the sums, .grad; as many pieces as there are
    learner.step("...")                         # over all ranks, one step of Adam (Kingma and Ba 2015), zero again

A loss is divided by what all ranks have together, so that neither ranks nor pieces matter. Equal starts, sums and
steps keep the copies equal, bit for bit: nothing is broadcast, and one rank's copy is what a checkpoint holds.
"""

import math
from typing import Any, Generic, TypeVar

import torch

from memdiff.errors import NumericError
from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import place
from memdiff.runtime.ranks import Ranks

N = TypeVar("N", bound=torch.nn.Module)
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's usual ones


class Learner(Generic[N]):
    """A network in fp32 on the rank's device, its gradient sums and its two moments: 16 bytes a weight."""

    def __init__(self, network: N, name: str, *, learning_rate: float, ranks: Ranks) -> None:
        self.name, self._ranks = name, ranks
        with memory_tag("method networks"):
            self.network = place(network, ranks.device)
            self.parameters = list(network.parameters())
            # One tensor at a time: what several at once would take besides is as large as the network.
            self._optimizer = torch.optim.Adam(
                self.parameters, lr=learning_rate, betas=BETAS, eps=EPSILON, foreach=False
            )
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
                self._optimizer.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def step(self, when: str) -> float:
        """One step down the sums of all ranks. Returns their L2 norm. Collective.

        Raises NumericError on every rank where that is not finite; `when` says which step of the run it was.
        """
        with torch.no_grad(), memory_tag("method networks"):
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            for gradient in gradients:
                gradient.copy_(self._ranks.sum(gradient))
            norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
            if not math.isfinite(norm):
                raise NumericError(
                    f"the {self.name} diverged: its gradient is {norm} {when}; lower method.{self.name}.learning_rate"
                )
            self._optimizer.step()
            torch._foreach_zero_(gradients)
        return norm

    def forget(self) -> None:
        """Drops what the sums hold."""
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The network's weights and its optimizer's moments."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, bit for bit."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def start(network: N, seed: int) -> N:
    """Torch's own first weights of linear layers and convolutions, U(-b, b) with b = 1 / sqrt(inputs), from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                bound = 1 / math.sqrt(module.weight[0].numel())
                for parameter in module.parameters(recurse=False):
                    parameter.uniform_(-bound, bound, generator=generator)
    return network
