"""DeepSpeed ZeRO-2 around the list of trainable parameters: one backward, one step, an update.

The engine never sees the network. Pieces add gradients into fp32 sums; `apply` hands those sums over in one engine
backward; DeepSpeed reduces, clips, steps the fp32 masters and writes the working copies back. It averages over ranks:
a rank's sums are W times its share of the gradient.

What DeepSpeed 0.19.8 does, and what follows:
- fp16 casts the working copies in place and keeps fp32 masters in the ZeRO partition: export reads the masters.
- Its dynamic loss scale starts by skipping updates. The gradient is known before the backward, so the scale is set from
  the largest element over all ranks: nothing overflows, nothing is skipped.
- After an overflow with offload and an fp32 accumulation dtype its buffer stays infinite: it is dropped.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.utils import safe_get_full_fp32_param
from torch.autograd import Function

from memdiff.engine.config import OptimizerConfig
from memdiff.engine.divergence import refuse_divergence, sums_of_bits
from memdiff.engine.operators import load_cpu_adam
from memdiff.engine.pickles import PICKLED
from memdiff.engine.update import Update, made_again, warmed_up
from memdiff.errors import CheckpointError, ConfigError, NumericError, OutOfMemoryError
from memdiff.processes import landmarks
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.placement import place
from memdiff.runtime.ranks import Ranks

# log2 of the largest scaled gradient element summed over ranks: fp16 ends at 2^16, and two bits are kept in hand.
LOG2_LARGEST_SCALED = 13


class _HandOver(Function):
    """A scalar zero whose gradient with respect to a parameter is exactly `gradient`."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.gradient = gradient  # not a saved tensor: it may lie on the host, and nothing differentiates it
        ctx.dtype, ctx.device = parameter.dtype, parameter.device
        return torch.zeros((), dtype=torch.float32, device=parameter.device)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (place(ctx.gradient, ctx.device) * upstream[0]).to(ctx.dtype), None


class DeepSpeedEngine:
    """Fulfils Engine on deepspeed.initialize; world sizes from 1."""

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        config: OptimizerConfig,
        ranks: Ranks,
        *,
        ds_config: dict[str, Any],
        gradients_on_host: bool = False,
    ) -> None:
        self._config, self._ranks, self._names = config, ranks, tuple(parameters)
        self._parameters = tuple(parameters.values())
        offload = "offload_optimizer" in ds_config["zero_optimization"]
        self._half = "fp16" in ds_config
        parts = deepspeed.initialize(
            model=torch.nn.ParameterList(self._parameters),
            optimizer=make_optimizer(self._parameters, config, offload=offload),
            config=ds_config,
            dist_init_required=False,
        )
        self._engine = parts[0]
        self._zero: Any = parts[1]  # Stage1And2ZeroOptimizer; DeepSpeed's annotation is wider
        self.gradients = Gradients(self._parameters, on_host=gradients_on_host, names=self._names)
        self.updates = 0
        self._average: list[torch.Tensor] | None = None
        if config.ema is not None:
            self._average = [partition.clone() for partition in self._partitions]

    @property
    def _partitions(self) -> list[torch.Tensor]:
        """This rank's part of the fp32 masters, one flat tensor a parameter group."""
        return [partition.detach() for partition in self._zero.single_partition_of_fp32_groups]

    def apply(self, rate: float = 1.0) -> Update:
        """One engine backward and step, as `Engine` has it.

        Raises NumericError on every rank where a gradient is not finite on any, or the ranks' weights differ, and
        OutOfMemoryError where memory runs out once something has changed. Before that it is tried again.
        """
        sums_P, largest = made_again(self._looked_at)
        if sums_P is not None:
            refuse_divergence(sums_P, self._names, self._ranks)
        try:
            return self._apply(largest, rate)
        except torch.OutOfMemoryError:
            pass  # its frames are gone, so that there is memory for the last words
        raise OutOfMemoryError(
            f"an update ran out of memory on rank {self._ranks.rank} when it had begun, and can't be made again; the "
            "checkpoint before is whole"
        )

    def _looked_at(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What an update needs to know of this rank before it changes anything: sums of bits, the largest gradient."""
        landmarks.passed()
        sums_P = sums_of_bits(self._parameters) if self._ranks.world_size > 1 else None
        return sums_P, place(self.gradients.max_abs(), self._ranks.device)

    def _apply(self, largest: torch.Tensor, rate: float) -> Update:
        scale = self.hand_over(largest)
        learning_rate = rate * warmed_up(self._config, self.updates)
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        self.gradients.zero()
        applied = bool(self._engine.was_step_applied())
        if applied:
            self.updates += 1
            self._follow()
        else:
            for group in self._zero.averaged_gradients:
                self._zero.averaged_gradients[group] = None
        norm = self._engine.get_global_grad_norm()
        return Update(float(norm if norm is not None else math.nan), scale, not applied, learning_rate)

    def hand_over(self, largest: torch.Tensor | None = None) -> float:
        """The one engine backward of an update: its gradient is exactly the sums, times the loss scale it returns.

        `largest` is this rank's largest element, where it is known.
        """
        if largest is None:
            largest = place(self.gradients.max_abs(), self._ranks.device)
        over_ranks = float(self._ranks.max(largest))
        if not math.isfinite(over_ranks):
            raise NumericError(self._not_finite())
        if self._half:
            self._zero.loss_scaler.cur_scale = loss_scale(over_ranks, self._ranks.world_size)
        scale = float(self._zero.loss_scaler.cur_scale) if self._half else 1.0
        handed = [_HandOver.apply(p, g) for p, g in zip(self._parameters, self.gradients.sums, strict=True)]
        self._engine.backward(torch.stack(handed).sum(), scale_wrt_gas=False)  # pyright: ignore[reportArgumentType]
        return scale

    def _not_finite(self) -> str:
        """Which summed gradient is NaN or infinite: the first of the lowest rank that has one. Collective."""
        sizes = {name: float(total.abs().max()) for name, total in zip(self._names, self.gradients.sums, strict=True)}
        bad_gradient = next(((name, size) for name, size in sizes.items() if not math.isfinite(size)), None)
        error = self._ranks.first_error(
            None if bad_gradient is None else NumericError(f"{bad_gradient[0]} is {bad_gradient[1]}")
        )
        assert error is not None, "no rank has a gradient that is not finite"
        return (
            f"the summed gradient of {error[2]} on rank {error[0]}; lower optimizer.learning_rate or look at the reward"
        )

    def _follow(self) -> None:
        """The average moves towards the masters. At first its decay is (1 + n) / (10 + n): it forgets the start."""
        if self._average is None or self._config.ema is None:
            return
        decay = min(self._config.ema, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._partitions, 1 - decay)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The full fp32 masters, or their average, on the host of every rank. Collective."""
        with self._average_in_place():
            full = {}
            for name, parameter in zip(self._names, self._parameters, strict=True):
                master = safe_get_full_fp32_param(parameter)
                assert master is not None, f"DeepSpeed keeps no master of {name}"
                full[name] = place(master.detach().float(), torch.device("cpu")).clone()
            return full

    @contextmanager
    def _average_in_place(self) -> Iterator[None]:
        """While it lasts the partitions hold the average."""
        if self._average is None:
            yield
            return
        kept = [partition.clone() for partition in self._partitions]
        torch._foreach_copy_(self._partitions, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._partitions, kept)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """While it lasts the working copies hold what `weights` gives. Collective at entry."""
        if self._average is None:
            yield
            return
        kept = [parameter.detach().clone() for parameter in self._parameters]
        weights = self.weights()
        with torch.no_grad():
            for name, parameter in zip(self._names, self._parameters, strict=True):
                parameter.copy_(weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, kept)

    def save(self, folder: Path) -> None:
        """Every rank's shard of masters, optimizer state and average into `folder`. Collective.

        OSError or RuntimeError on a rank that can't write; the others return.
        """
        try:
            self._engine.save_checkpoint(
                str(folder), tag="engine", client_state={"updates": self.updates}, save_latest=False
            )
        except (OSError, RuntimeError):
            deepspeed.comm.barrier()  # all that is written lies before its last one, where the other ranks wait
            raise
        torch.save(self._average, folder / f"average_{self._ranks.rank}.pt")

    def load(self, folder: Path) -> None:
        """What `save` wrote at the same world size. No file can run code: pickles are read with weights_only."""
        before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            with torch.serialization.safe_globals(PICKLED):
                path, state = self._engine.load_checkpoint(str(folder), tag="engine")
        finally:
            os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
            if before is not None:
                os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
        if path is None:
            raise CheckpointError(f"{folder} holds no engine state")
        self.updates = int(dict(state or {})["updates"])
        average = torch.load(folder / f"average_{self._ranks.rank}.pt", weights_only=True)
        if self._average is not None:
            torch._foreach_copy_(self._average, average)

    def checkpoint_bytes(self) -> int:
        """About what `save` writes on this rank."""
        average = sum(t.numel() * t.element_size() for t in self._average or ())
        weights = sum(p.numel() * p.element_size() for p in self._parameters) if self._ranks.is_first else 0
        return self.optimizer_bytes() + average + weights

    def optimizer_bytes(self) -> int:
        """Masters and moments of this rank, wherever they lie."""
        states = [t for s in self._zero.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in (*self._partitions, *states))


def make_optimizer(
    parameters: tuple[torch.nn.Parameter, ...], config: OptimizerConfig, *, offload: bool
) -> torch.optim.Optimizer:
    """AdamW: torch's, bitsandbytes' 8-bit one, or DeepSpeed's for the CPU where the states are offloaded."""
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    if config.bits == 8:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **options)
    if offload:
        load_cpu_adam()
        return DeepSpeedCPUAdam(parameters, adamw_mode=True, **options)
    return torch.optim.AdamW(parameters, **options)


def loss_scale(largest: float, world_size: int) -> float:
    """The power of two that brings the largest gradient element, summed over ranks, to at most 2^13."""
    if largest == 0:
        return 1.0
    exponent = LOG2_LARGEST_SCALED - math.ceil(math.log2(largest * world_size))
    return 2.0 ** max(-100, min(100, exponent))


def check_precision(precision: str) -> None:
    """Raises ConfigError where DeepSpeed's accelerator does not do it."""
    accelerator: Any = get_accelerator()
    able = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported, "fp32": lambda: True}
    if not able[precision]():
        raise ConfigError(
            f"model.precision {precision} is not supported on this device ({accelerator.device_name()}); use auto"
        )
