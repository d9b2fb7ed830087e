"""How large a model's images are: as asked for, or as its config says. No torch."""

from typing import Any

from memdiff.errors import ConfigError
from memdiff.models.config import Size


def image_size(own: Any, size: Size, *, pixels: int = 1, unit: int) -> tuple[int, int]:
    """Height and width in pixels: those of `size`, and where it says None the `sample_size` of a UNet's config.

    `pixels` of an image make one of what the UNet denoises; sides are multiples of `unit` pixels. Raises ConfigError
    where they are not, and where nobody says them.
    """
    sides = own if isinstance(own, list | tuple) else (own, own)
    chosen = []
    for key, wanted, side in zip(("height", "width"), size, sides, strict=True):
        if wanted is None and side is None:
            raise ConfigError("this UNet's config.json says no sample_size; set model.resolution, such as 512")
        chosen.append(int(side) * pixels if wanted is None else wanted)
        if chosen[-1] % unit:
            square = size[0] == size[1]
            raise ConfigError(
                f"model.{'resolution' if square else key} must be a multiple of {unit} for this model, got {chosen[-1]}"
            )
    return chosen[0], chosen[1]
