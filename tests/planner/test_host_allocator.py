"""Freed memory that stays with the process."""

import json
import sys

import pytest

from tests.helpers.processes import run_python

BLOCK, BLOCKS = 24 * 2**20, 4  # below the largest that glibc takes into its heap, far above what it does by default

ROUNDS = f"""
import ctypes, json, sys
import torch
from memdiff.runtime.host_allocator import keep_freed_memory

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Mallinfo2(ctypes.Structure):  # <malloc.h>
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]

ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
if ask is None or not keep_freed_memory():
    sys.exit("the C library is not glibc, or older than 2.33")
ask.restype = Mallinfo2
rounds = []
for _ in range(10):
    states = [ask()]
    graph = [torch.ones({BLOCK} // 4) for _ in range({BLOCKS})]
    states.append(ask())
    del graph
    states.append(ask())
    rounds.append([(state.arena, state.hblkhd, state.uordblks + state.hblkhd) for state in states])
print(json.dumps(rounds))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_stays_in_the_heap() -> None:
    """By malloc's own books, since whether a page faults is up to the kernel, its huge pages and the heap's layout.

    96 MiB of large tensors, which are mapped and unmapped one by one by default, come from the heap; none of it is
    given back; and rounds later the heap grows no more.
    """
    done = run_python("-c", ROUNDS)
    if done.stderr.startswith("the C library"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)
    (_, mapped, used), (heap_alive, mapped_alive, used_alive), (heap_freed, _, used_freed) = rounds[0]
    if used_alive - used < BLOCK * BLOCKS:
        pytest.skip("another malloc stands in the place of glibc's")
    assert mapped_alive == mapped
    assert used_freed < used + BLOCK and heap_freed == heap_alive
    assert len({heap for states in rounds[-2:] for heap, _, _ in states}) == 1


TWICE = f"""
import ctypes, json, sys
from memdiff.runtime.host_allocator import return_freed_memory

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Mallinfo2(ctypes.Structure):  # <malloc.h>
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]

libc = ctypes.CDLL(None)
ask = getattr(libc, "mallinfo2", None)
if ask is None:
    sys.exit("the C library is not glibc, or older than 2.33")
ask.restype, libc.malloc.restype = Mallinfo2, ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

if sys.argv[1] == "asked" and not return_freed_memory():
    sys.exit("the C library is not glibc")
mapped = []
for _ in range(2):
    before, block = ask().hblks, libc.malloc({BLOCK})
    mapped.append(ask().hblks - before)
    libc.free(block)
print(json.dumps(mapped))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
@pytest.mark.parametrize(("asked", "mapped"), [("unasked", [1, 0]), ("asked", [1, 1])])
def test_freed_memory_goes_back(asked: str, mapped: list[int]) -> None:
    """By default the second block of a size that was freed once comes from the heap."""
    done = run_python("-c", TWICE, asked)
    if "not glibc" in done.stderr:
        pytest.skip(done.stderr)
    assert json.loads(done.stdout) == mapped, done.stderr
