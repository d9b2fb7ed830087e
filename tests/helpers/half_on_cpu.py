"""Lets DeepSpeed run its real fp16 path on a CPU: half parameters, fp32 masters, loss scaling, overflow checks.

DeepSpeed 0.19.8 refuses fp16 on CPUs; torch's CPU kernels do it. For tests only.
"""

import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator


def allow_half() -> None:
    """From now on this process's CPU accelerator says that it supports fp16."""
    CPU_Accelerator.is_fp16_supported = lambda self: True
    CPU_Accelerator.supported_dtypes = lambda self: [torch.float, torch.bfloat16, torch.half]
