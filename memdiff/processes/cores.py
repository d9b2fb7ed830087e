"""How many processors this process may use."""

import os


def cores_here() -> int:
    """Those that it may run on, where the system says so (Linux); else all there are, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
