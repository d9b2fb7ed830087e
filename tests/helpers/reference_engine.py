"""The engine's job in plain torch: the oracle that DeepSpeed is held to, and an engine for tests of one process."""

from collections.abc import Mapping

import torch

from memdiff.engine.config import OptimizerConfig
from memdiff.engine.update import Update, warmed_up
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.ranks import Ranks


class ReferenceEngine:
    """Fulfils Engine with fp32 masters on every rank, torch.optim.AdamW, an all-reduce of the sums."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], config: OptimizerConfig, ranks: Ranks) -> None:
        self._config, self._ranks, self._names = config, ranks, tuple(parameters)
        self._parameters = tuple(parameters.values())
        self._masters = [torch.nn.Parameter(p.detach().float().clone()) for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            self._masters,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )
        self.gradients = Gradients(self._parameters)
        self.updates = 0

    def apply(self, rate: float = 1.0) -> Update:
        """Averages the sums over ranks, clips, steps the masters, writes the working copies."""
        learning_rate = rate * warmed_up(self._config, self.updates)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        for master, total in zip(self._masters, self.gradients.sums, strict=True):
            master.grad = self._ranks.sum(total) / self._ranks.world_size
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._config.clip_norm or float("inf"))
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(list[torch.Tensor](self._parameters), list[torch.Tensor](self._masters))
        self.gradients.zero()
        self.updates += 1
        return Update(float(norm), 1.0, False, learning_rate)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The masters, on the host."""
        return {name: master.detach().cpu().clone() for name, master in zip(self._names, self._masters, strict=True)}
