"""Two ranks leave a round together, outlive a save that one can't write, and notice weights that differ."""

import socket
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from tests.helpers.processes import run_python
from tests.helpers.ranks import run_ranks


@cache
def over_two_ranks() -> list[dict[str, Any]]:
    """What `tests.workers.together` came to on each of two gloo ranks."""
    folder = Path(mkdtemp())
    return run_ranks("together", 2, {"folder": str(folder)}, folder)


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("sleeps", [0, 1], ids=["collective", "asleep"])
def test_one_rank_that_is_asked_takes_the_other_with_it(asked: int, sleeps: int) -> None:
    """Whether the request finds it in a collective or asleep in Python code, as in a reward that hangs: neither rank
    waits for the other, and both let go of the round."""
    for rank in over_two_ranks():
        assert rank[f"asked {asked} {sleeps}"].startswith("left at "), rank


def test_a_request_after_the_last_moment_lets_the_round_end() -> None:
    """All ranks go on through their collectives, and all know of the request then."""
    assert [rank["after"] for rank in over_two_ranks()] == ["went on, asked: True"] * 2


def test_a_save_that_one_rank_can_not_write_leaves_the_one_before() -> None:
    """Two are a line each, with path, needed and free; the third ends the run with the same words on both ranks."""
    for rank in over_two_ranks():
        saves = rank["saves"]
        assert saves["names"] == ["round_000001"] and saves["restored"] == "round_000001"
        assert len(saves["said"]) == 2
        for number, line in zip((2, 3), saves["said"], strict=True):
            assert line.startswith(f"warning: round {number} could not be saved by rank 1: /"), line
            assert "No space left on device (needs about " in line and " MiB are free)" in line
        assert saves["ended"].startswith("round 4 could not be saved by rank 1: ")
        assert saves["ended"].endswith("that is the third time in a row")


def test_one_bit_that_differs_between_ranks_is_seen() -> None:
    """At the next update, exit code 4, by the parameter's name, on both ranks."""
    for rank in over_two_ranks():
        assert rank["diverged"].startswith("4 second is not the same on all ranks"), rank["diverged"]


def test_an_update_that_runs_out_of_memory_is_made_again_where_nothing_has_changed() -> None:
    """To the same weights, though it was one rank alone; later it ends the run with exit code 7, and a line."""
    for number, rank in enumerate(over_two_ranks()):
        short = rank["short"]
        assert short["short"] == short["room"] != [1.0] * 10
        assert (short["again"] == "struck") == (number == 1)
        assert short["ended"].startswith(f"7 an update ran out of memory on rank {number} when it had begun")


ALONE = """
import torch
from memdiff.engine.process_group import start_process_group
from memdiff.runtime.ranks import ranks_of_this_process
start_process_group(ranks_of_this_process())
print("ranks:", torch.distributed.get_world_size())
"""


def test_a_rank_alone_meets_nobody_at_a_port_in_use() -> None:
    """Two programs may train in one process each, though DeepSpeed's own port is one for all."""
    with socket.socket() as other:
        with suppress(OSError):  # another program's already
            other.bind(("127.0.0.1", 29500))
            other.listen()
        done = run_python("-c", ALONE)
    assert done.returncode == 0 and "ranks: 1" in done.stdout, done.stderr
