"""What the policies around a diffusers UNet share: the chain's formulas on its predictions, and what is trained.

Shapes: B rows, C channels, H W pixels of what is denoised.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from memdiff.chain.ddim import predict_x0_and_eps, step_mean
from memdiff.chain.schedule import Schedule
from memdiff.models.denoiser import Denoiser
from memdiff.models.lora.inject import Steps
from memdiff.runtime.half_precision import widen


class UnetPolicy(ABC):
    """The part of memdiff.models.policy.Policy that asks nothing but `predict`."""

    schedule: Schedule
    _denoiser: Denoiser

    @abstractmethod
    def predict(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str] = ()) -> torch.Tensor:
        """The network's prediction: B C H W fp32."""
        ...

    def mean(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str] = ()) -> torch.Tensor:
        """Mean of p(x_s | x_t): B C H W fp32."""
        return step_mean(self.predict(x_t_BCHW, steps, prompts), widen(x_t_BCHW), steps, self.schedule)

    def x0(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str] = ()) -> torch.Tensor:
        """Predicted x_0, clipped where the scheduler clips: B C H W fp32."""
        return predict_x0_and_eps(self.predict(x_t_BCHW, steps, prompts), widen(x_t_BCHW), steps, self.schedule)[0]

    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        """All of the UNet, or the LoRA."""
        return self._denoiser.trainable()

    def train_only(self, modules: Sequence[str]) -> None:
        """Freezes the UNet outside these modules."""
        self._denoiser.train_only(modules)

    def trains(self, step: int) -> bool:
        """Whether a trainable parameter takes part at this step."""
        return self._denoiser.trains(step)

    @property
    def separable(self) -> bool:
        """Whether the images of one call can have trained weights of their own."""
        return self._denoiser.adapter is not None

    def per_image_weights(self, images: int) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """Inside, each image has trained weights of its own, which are yielded."""
        return self._denoiser.per_image_weights(images)

    def base(self) -> AbstractContextManager[None]:
        """Inside, predictions are those of the model before training."""
        return self._denoiser.base()

    def attach(self, sources: Sequence[tuple[Path, float]], *, scale: float = 1.0, steps: Steps | None = None) -> None:
        """Adds saved adapters, each with a weight, for sampling: see `adapters.attach`."""
        self._denoiser.attach(sources, scale=scale, steps=steps, of=self.schedule.steps)
