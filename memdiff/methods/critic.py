"""SFT-PG's critic: an image to its cost, high on what the model makes and low on real images.

    IPM(p_theta, q) = sup_f E_{p_theta} f(x_0) - E_q f(x_0)                       (Fan and Lee 2023, section 4.1)

Three convolutions that each halve the sides and one to a number at every place, whose mean is the cost. No norm, which
would make an image's cost depend on its batch; no gradient penalty, since the generator only reads the cost.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Sequence

import torch

from memdiff.errors import ConfigError
from memdiff.methods.learner import Learner, start
from memdiff.methods.learners_config import CriticConfig
from memdiff.runtime.ranks import Ranks

SMALLEST = 8  # pixels of a side: three halvings leave one place
LEAK = 0.2


class Critic(torch.nn.Module):
    """f(x): images B C H W in [0, 1] -> B."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for before, width in zip((channels, *widths[:-1]), widths, strict=True):
            layers += [torch.nn.Conv2d(before, width, 4, stride=2, padding=1), torch.nn.LeakyReLU(LEAK)]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Conv2d(widths[-1], 1, 1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The cost of each image, high on the model's own: B fp32."""
        return self.layers(2 * images_BCHW - 1).mean(dim=(1, 2, 3))


def new_critic(config: CriticConfig, shape: tuple[int, int, int], ranks: Ranks, seed: int) -> Learner[Critic]:
    """Untrained, for images of this shape, equal on every rank. Raises ConfigError where they are too small for it."""
    if min(shape[1:]) < SMALLEST:
        raise ConfigError(
            f"method.kind sft_pg needs images of at least {SMALLEST} x {SMALLEST} pixels, since its critic halves them "
            f"three times; the model makes {shape[1]} x {shape[2]}"
        )
    network = start(Critic(shape[0], config.widths), seed)
    return Learner(network, "critic", learning_rate=config.learning_rate, ranks=ranks)
