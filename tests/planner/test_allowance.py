"""What is reserved beyond live bytes, and how fast a card is: tables of rows with their sources."""

from typing import Any

import pytest

from memdiff.memory.allowance import (
    BLOCKS_AND_KEPT_STEPS,
    EVERYTHING_STAYS,
    NETWORKS_MOVE,
    Row,
    allowance_bytes,
    networks_move,
)
from memdiff.memory.gpus import find_gpu
from memdiff.memory.throughput import GUIDED_STEP_TFLOP, TABLE, peak_share
from memdiff.runtime.units import GIB
from tests.helpers.one_graph import knobs as everything_here

STAYS = everything_here(1)
KEPT = STAYS.model_copy(update={"activation_checkpointing": "blocks", "kept_steps": 3})
MOVES = STAYS.model_copy(update={"idle_unet": "host", "idle_decoder": "host"})
SITUATIONS = [
    *((row, STAYS) for row in EVERYTHING_STAYS),
    *((row, KEPT) for row in BLOCKS_AND_KEPT_STEPS),
    *((row, MOVES) for row in NETWORKS_MOVE),
]


@pytest.mark.parametrize(("row", "knobs"), SITUATIONS)
def test_no_measured_run_reserved_more_than_is_allowed(row: Row, knobs: Any) -> None:
    """To the byte where it is the largest of its situation, and above it where it is not."""
    live = round(row.live_gib * GIB)
    assert live + allowance_bytes(live, knobs) >= row.reserved_gib * GIB - 2


def test_networks_that_move_are_allowed_more_and_between_two_rows_in_proportion() -> None:
    """At 2.45 GiB (3.32 - 1/16) / 2.45 - 1 = 0.330, at 6.57 GiB (10.94 - 1/16) / 6.57 - 1 = 0.656, at 4.51 GiB, half
    way, 0.493; below and above them as at them."""
    assert networks_move(MOVES) and not networks_move(KEPT)
    shares = [
        (allowance_bytes(round(live * GIB), MOVES) / GIB - 1 / 16) / live for live in (1.0, 2.45, 4.51, 6.57, 9.0)
    ]
    assert shares == pytest.approx([0.330, 0.330, 0.493, 0.656, 0.656], abs=1e-3)
    assert allowance_bytes(GIB, STAYS) < allowance_bytes(GIB, KEPT) < allowance_bytes(GIB, MOVES)


@pytest.mark.parametrize("images", [1, 4, 16])
def test_steps_a_second_are_the_published_ones(images: int) -> None:
    """Of a guided batch of Stable Diffusion 1.5 on a T4, within 20 %."""
    seconds = images * GUIDED_STEP_TFLOP / (find_gpu("t4").peak_tflops * peak_share("stable_diffusion", 2 * images))
    published = {1: 6.9, 4: 1.79, 16: 0.43}[images]
    assert 1 / seconds == pytest.approx(published, rel=0.2)


def test_between_rows_beyond_them_and_without_them() -> None:
    """Half way from 2 rows to 8 is 4; families without rows are taken for Stable Diffusion."""
    one, four, sixteen = (row.share for row in TABLE)
    assert peak_share("stable_diffusion", 4) == pytest.approx((one + four) / 2)
    assert peak_share("stable_diffusion", 1) == one and peak_share("stable_diffusion", 512) == sixteen
    assert peak_share("ddpm", 8) == peak_share("sdxl", 8) == four
    assert all(row.source for row in TABLE)
