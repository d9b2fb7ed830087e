"""Precisions and their dtypes."""

import torch

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def resolve_precision(precision: str, device: torch.device) -> str:
    """auto: fp16 on a CUDA device, fp32 on a CPU."""
    if precision != "auto":
        return precision
    return "fp16" if device.type == "cuda" else "fp32"
