"""Freed memory that stays with the process."""

import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys
import torch
from memdiff.host_memory import keep_freed_memory

if "keep" in sys.argv:
    print(keep_freed_memory())
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    graph = [torch.ones(2**18) for _ in range(64)]  # 64 of 1 MiB
    del graph
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_pages_are_not_faulted_in_again() -> None:
    """64 MiB allocated and freed over and over: faults in every round by default, next to none when kept. (A fault may
    bring in more than a page, so that their number depends on the kernel.)"""
    told = [
        subprocess.run(
            [sys.executable, "-c", ROUNDS, *words], capture_output=True, text=True, check=True
        ).stdout.split()
        for words in ([], ["keep"])
    ]
    (by_default,), (set_, kept) = told
    assert set_ == "True"
    assert int(by_default) > 50 > 10 * int(kept)
