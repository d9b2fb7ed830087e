"""A value function: a state of the chain to what its image is expected to be worth, v(x_t, t).

An MLP over the flattened x_t whose layers are gated by the step: h <- softplus(g_k * (W h + b)), g_k learnt for each
step k (Fan and Lee 2023, as in their code). Gates start at 1 and the output at 0, so that v does nothing at first.

Shapes: B pairs of an image and a step, C H W of x_t, K steps.
"""

from collections.abc import Sequence

import torch

from memdiff.methods.learner import Learner, start
from memdiff.methods.learners_config import ValueConfig
from memdiff.runtime.placement import numbers_on
from memdiff.runtime.ranks import Ranks

LAYERS = 3  # gated ones; a fourth gives the value


class ValueFunction(torch.nn.Module):
    """v(x, k): x B C H W and their steps -> B."""

    def __init__(self, shape: tuple[int, int, int], steps: int, width: int) -> None:
        super().__init__()
        inputs = shape[0] * shape[1] * shape[2]
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(width if number else inputs, width) for number in range(LAYERS)
        )
        self.gates = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(steps, width)) for _ in range(LAYERS))
        self.value = torch.nn.Linear(width, 1)

    def forward(self, x_BCHW: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
        """The expected worth of each state at its step: B fp32."""
        step_B = numbers_on(x_BCHW.device, steps)
        hidden_BW = x_BCHW.float().flatten(start_dim=1)
        for layer, gate_KW in zip(self.layers, self.gates, strict=True):
            hidden_BW = torch.nn.functional.softplus(gate_KW[step_B] * layer(hidden_BW))
        return self.value(hidden_BW)[:, 0]


def new_value_function(
    config: ValueConfig, shape: tuple[int, int, int], steps: int, ranks: Ranks, seed: int
) -> Learner[ValueFunction]:
    """Untrained, for the states of a chain, equal on every rank."""
    network = start(ValueFunction(shape, steps, config.width), seed)
    with torch.no_grad():
        network.value.weight.zero_()
        network.value.bias.zero_()
    return Learner(network, "value", learning_rate=config.learning_rate, ranks=ranks)
