"""Classifier-free guidance (Ho and Salimans 2022, equation 6), with gradients through both branches.

    e = e_without + w (e_with - e_without)

w is Stable Diffusion's `guidance_scale`, the paper's w + 1.

Shapes: B rows, C channels, H W pixels of the latent.
"""

from collections.abc import Callable

import torch

from memdiff.models.text_encoders import Conditioning

Network = Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]


def guided(
    network: Network,
    x_t_BCHW: torch.Tensor,
    timesteps_B: torch.Tensor,
    prompt: Conditioning,
    without: Conditioning,
    *,
    weight: float,
    in_two: bool,
) -> torch.Tensor:
    """The guided prediction: B C H W fp32.

    One call of 2B rows, or (`in_two`) two calls of B rows: equal to rounding, with other peaks and other speed.
    """
    if in_two:
        without_BCHW = network(x_t_BCHW, timesteps_B, without)
        with_BCHW = network(x_t_BCHW, timesteps_B, prompt)
    else:
        both = network(x_t_BCHW.repeat(2, 1, 1, 1), timesteps_B.repeat(2), without.followed_by(prompt))
        without_BCHW, with_BCHW = both.chunk(2)
    return without_BCHW + weight * (with_BCHW - without_BCHW)
