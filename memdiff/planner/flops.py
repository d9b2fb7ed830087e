"""Floating-point operations of one operator, by torch's own formulas (torch.utils.flop_counter, torch 2.13).

Matrix products, convolutions and attention count; elementwise work and normalisation do not: on a GPU they cost
bandwidth, not arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


# The fused attention of the CPU is not in torch's registry; its arithmetic is that of the GPU's.
_OF_THE_CPU: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
_FORMULAS: dict[Any, Callable[..., int]] = {**flop_registry, **_OF_THE_CPU}


Formula = Callable[[tuple[Any, ...], dict[str, Any], Any], int]  # of arguments, named ones and the result


def formula_of(func: Any) -> Formula | None:
    """Of an operator's calls; None where they have no arithmetic that counts."""
    packet = func._overloadpacket
    formula = _FORMULAS.get(packet)
    if formula is None:
        return None
    if packet in _OF_THE_CPU:
        return lambda args, kwargs, result: formula(*args, **kwargs)
    return lambda args, kwargs, result: int(formula(*args, **kwargs, out_val=result))
