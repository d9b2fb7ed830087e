"""How many processor cores this process may use. No torch."""

import os
import sys


def usable_cores() -> int:
    """Those that it is bound to, where the system says so; all there are elsewhere."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
