"""What the C library does with freed host memory. No torch."""

import ctypes
import sys
from collections.abc import Mapping

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_IN_HEAP = 32 * 2**20  # glibc's own limit of M_MMAP_THRESHOLD; larger blocks are always mapped and unmapped
LEAST_MAPPED = 2**20
KEPT = 2**31 - 1  # free bytes at the heap's end above which glibc gives them back


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep what is freed for the next allocation. False where the C library is another one.

    A denoising step's graph is allocated and freed at every step. By default its pages go back to the kernel in between
    and are faulted in again at their first use. The price: the process holds its peak until it ends.
    """
    return _set({M_MMAP_THRESHOLD: LARGEST_IN_HEAP, M_TRIM_THRESHOLD: KEPT})


def return_freed_memory() -> bool:
    """Has glibc's malloc map each block of a mebibyte or more by itself, so that freeing it gives it back.

    By default a freed block of up to 32 MiB teaches malloc to take such blocks from the heap. Weights that are cast on
    their way to a GPU then leave gaps there, each as large as a weight and split by the next small object: gigabytes
    that nobody uses and the kernel doesn't get. False where the C library is another one.
    """
    return _set({M_MMAP_THRESHOLD: LEAST_MAPPED})


def _set(options: Mapping[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(bool(mallopt(option, value)) for option, value in options.items())
