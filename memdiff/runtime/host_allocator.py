"""What the C library does with freed host memory. No torch."""

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_IN_HEAP = 32 * 2**20  # glibc's own limit of M_MMAP_THRESHOLD; larger blocks are always mapped and unmapped
KEPT = 2**31 - 1  # free bytes at the heap's end above which glibc gives them back


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep what is freed for the next allocation. False where the C library is another one.

    A denoising step's graph is allocated and freed at every step. By default its pages go back to the kernel in between
    and are faulted in again at their first use. The price: the process holds its peak until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
