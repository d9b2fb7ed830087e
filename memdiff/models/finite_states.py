"""Whether the images of a chain stay finite, and what is wrong where they don't.

Bytes have no NaN: a broken image would be written as a black one.

Shapes: n images of one batch, C H W of x_t.
"""

from collections.abc import Sequence

import torch

from memdiff.errors import NumericError
from memdiff.models.policy import Policy, decode_what_fits


class FiniteStates:
    """Looks at every state of a rollout without waiting for the device; `check` waits once for all of them."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, range, torch.Tensor]] = []

    def store(self, state: int, rows: range, x_nCHW: torch.Tensor) -> None:
        """`store` of memdiff.models.policy.rollout: state 0 is the noise, state k what step k of 1..K made."""
        self._seen.append((state, rows, x_nCHW.isfinite().flatten(1).all(dim=1)))

    def check(self, policy: Policy, images: Sequence[int]) -> None:
        """NumericError naming the first step and image that is not finite. `images` are the numbers of the rows."""
        finite = torch.cat([finite_n for _, _, finite_n in self._seen]).tolist() if self._seen else []
        places = [(state, row) for state, rows, _ in self._seen for row in rows]
        broken = [place for place, is_finite in zip(places, finite, strict=True) if not is_finite]
        if not broken:
            return
        step, row = min(broken)
        count = len({row for _, row in broken})
        raise NumericError(
            f"image {images[row]} is not finite after step {step} of {policy.schedule.steps} (in the end {count} of "
            f"{len(images)} are not): {cause(policy)}"
        )


def decoded(policy: Policy, x_0_nCHW: torch.Tensor, images: Sequence[int]) -> torch.Tensor:
    """`policy.decode` of finite x_0: n c h w. NumericError with the images' numbers and the cause where it fails."""
    try:
        return decode_what_fits(policy, x_0_nCHW)
    except NumericError as error:
        broken = broken_weight(policy)
        raise NumericError(f"images {images[0]} to {images[-1]}: {cause(policy) if broken else error}") from None


def cause(policy: Policy) -> str:
    """Why predictions are not finite, and what to do."""
    broken, dtype = broken_weight(policy), str(policy.dtype).removeprefix("torch.")
    in_fp32 = "take precision fp32 (--precision, or model.precision in a recipe)"
    damaged = "take an earlier checkpoint or another adapter, or download the model again"
    half = policy.dtype in (torch.float16, torch.bfloat16)
    if broken is None:
        otherwise = "look at --lora-scale and --mix, and at the learning rate of the training"
        return f"the weights are finite, but the network overflows in {dtype}; {in_fp32 if half else otherwise}"
    return f"the weight {broken} is not finite in {dtype}; {f'{in_fp32}, and if it stays so ' if half else ''}{damaged}"


def broken_weight(policy: Policy) -> str | None:
    """The first weight of the policy's networks with a NaN or an infinity in it, or None."""
    for network, module in policy.networks.items():
        for name, weight in module.named_parameters():
            if not bool(weight.isfinite().all()):
                return f"{network}.{name}"
    return None
