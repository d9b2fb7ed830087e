"""Recipe sections of the networks that a method trains beside the model, and their bytes. No torch."""

from typing import Annotated

from pydantic import Field

from memdiff.methods.workload import ImageShape
from memdiff.runtime.section import Float, Int, Section

LEARNT_BYTES = 16  # of a weight, all fp32: itself, its gradient, Adam's two moments
VALUE_LAYERS = 3  # memdiff.methods.value_function.LAYERS, which is not imported: it would load torch

Channels = Annotated[Int, Field(ge=1, le=65536)]


class CriticConfig(Section):
    """SFT-PG's critic: three convolutions that halve the sides, and Adam."""

    learning_rate: Float = Field(default=1e-4, gt=0, le=10, description="Of its own Adam.")
    widths: tuple[Channels, Channels, Channels] = Field(
        default=(128, 256, 512), description="Channels after each convolution."
    )
    noise: Float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Std of the normal noise that it sees every image through, real or made; images lie in 0..1. It "
        "takes away what tells made images apart at a glance, such as backgrounds that are exactly black.",
    )
    noise_draws: Int = Field(
        default=8, ge=1, le=10**4, description="Draws of that noise over which an image's cost is averaged."
    )

    def elements(self, shape: ImageShape) -> int:
        """Weights of the critic of such images."""
        before = (shape[0], *self.widths[:-1])
        convolutions = sum((16 * inputs + 1) * width for inputs, width in zip(before, self.widths, strict=True))
        return convolutions + self.widths[-1] + 1


class ValueConfig(Section):
    """A value function v(x_t, t): an MLP gated by the step, and Adam."""

    learning_rate: Float = Field(default=1e-4, gt=0, le=10, description="Of its own Adam.")
    width: Int = Field(default=256, ge=1, le=65536, description="Of its three hidden layers.")

    def elements(self, shape: ImageShape, steps: int) -> int:
        """Weights of the value function over such states of a chain of so many steps."""
        inputs, width = shape[0] * shape[1] * shape[2], self.width
        layers = (inputs + 1) * width + (VALUE_LAYERS - 1) * (width + 1) * width
        return layers + VALUE_LAYERS * steps * width + width + 1


class ValueBaselineConfig(ValueConfig):
    """REINFORCE's baseline (DPOK): the value function, and how much it learns of a round."""

    learning_rate: Float = Field(default=1e-3, gt=0, le=10, description="Of its own Adam.")
    steps: Int = Field(
        default=10, ge=1, le=10**6, description="Of Adam on a round's pairs, after the round has used it."
    )
