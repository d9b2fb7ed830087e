"""The pictures behind the embedded text-to-image model: digits at 32 x 32, RGB, thin, plain or thick."""

# Shapes: N pictures, C channels (3), H W pixels (32 x 32; 16 x 16 before `styled`). Values in [0, 1]: 0 paper, 1 ink.

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.embedded_models.text_prompts import STYLES, Style

PICTURE_SIZE = 32
RELATIVE_SIZE = 0.92  # of the scans, whose strokes touch the edges
# The grey level of the 16 x 16 scan that becomes the edge of a stroke, and the width of the ramp around it. The ramp of
# thick reaches below 0 and that of thin above 1: thick pictures have slightly grey paper, thin ones slightly grey ink.
EDGE_LEVEL: dict[Style, float] = {"thin": 0.63, "plain": 0.5, "thick": 0.37}
EDGE_WIDTH = 0.8
# Paper and ink lie inside 0..1, so that the clamp behind a decoder, whose output scatters, keeps its gradient there.
PAPER, INK = 0.05, 0.95


def styled(images_N1HW: Tensor, styles: Style | Sequence[Style]) -> Tensor:
    """Scans at 16 x 16 -> pictures at 32 x 32 whose strokes are as thick as `styles` say: one for all, or one each.

    Upsampled bicubically and sharpened by a ramp around a grey level: a higher level leaves less of a blurred stroke.
    Returns: N3HW in PAPER..INK.
    """
    num_images = len(images_N1HW)
    placement_N23 = torch.eye(2, 3).div(RELATIVE_SIZE).expand(num_images, 2, 3)
    grid_NHW2 = F.affine_grid(placement_N23, [num_images, 1, PICTURE_SIZE, PICTURE_SIZE], align_corners=False)
    larger_N1HW = F.grid_sample(images_N1HW, grid_NHW2, mode="bicubic", padding_mode="zeros", align_corners=False)
    levels = [EDGE_LEVEL[styles]] if isinstance(styles, str) else [EDGE_LEVEL[style] for style in styles]
    levels_N111 = torch.tensor(levels).reshape(-1, 1, 1, 1)
    ink_N1HW = ((larger_N1HW.clamp(0.0, 1.0) - levels_N111) / EDGE_WIDTH + 0.5).clamp(0.0, 1.0)
    return (PAPER + (INK - PAPER) * ink_N1HW).expand(-1, 3, -1, -1).contiguous()


def random_styles(count: int, generator: torch.Generator) -> list[Style]:
    """Each style equally likely."""
    return [STYLES[index] for index in torch.randint(len(STYLES), (count,), generator=generator).tolist()]
