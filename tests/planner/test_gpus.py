"""The cards that plans are made for."""

import pytest

from memdiff.errors import ConfigError
from memdiff.memory.gpus import CARDS, CONTEXT_BYTES, MARGIN_BYTES, NCCL_BYTES, find_gpu
from memdiff.runtime.units import GIB


@pytest.mark.parametrize(
    ("said", "card"),
    [("t4", "t4"), ("T4", "t4"), ("RTX 4090", "rtx4090"), ("NVIDIA GeForce RTX-3090", "rtx3090"), ("a100", "a100-40"),
     ("A100 80GB", "a100-80"), ("v100_32", "v100-32"), ("NVIDIA H200", "h200")],
)  # fmt: skip
def test_a_card_is_found_however_it_is_written(said: str, card: str) -> None:
    assert find_gpu(said) is CARDS[card]


@pytest.mark.parametrize("said", ["t5", "", "16", "a100-8"])
def test_an_unknown_card_lists_the_known_ones(said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        find_gpu(said)
    assert all(card in str(raised.value) for card in CARDS)
    assert raised.value.exit_code == 2


def test_the_t4_is_turing() -> None:
    """sm_75 has neither bf16 nor flash attention 2. 14.56 - 0.40 = 14.16 GiB for one rank, 13.96 for several;
    of them 0.30 are kept free."""
    t4 = find_gpu("t4")
    assert t4.sm == 75 and not t4.bf16 and find_gpu("a10").bf16
    assert t4.budget_bytes(1) == pytest.approx(13.86 * GIB, rel=1e-6)
    assert t4.budget_bytes(4) == pytest.approx(13.66 * GIB, rel=1e-6)


def test_numbers_are_of_their_size() -> None:
    """CUDA reports less than the name says and more than nine tenths of it; a typing error would leave these bounds."""
    sizes = {"t4": 16, "p100": 16, "v100-16": 16, "v100-32": 32, "rtx2080ti": 11, "a10": 24, "a10g": 24, "rtx3060": 12,
             "rtx3090": 24, "a6000": 48, "a100-40": 40, "a100-80": 80, "l4": 24, "rtx4090": 24, "l40s": 48,
             "h100": 80, "h200": 141}  # fmt: skip
    assert set(sizes) == set(CARDS)
    for name, card in CARDS.items():
        assert 0.9 < card.total_gib / sizes[name] < 1.0, name
        assert 18 <= card.peak_tflops <= 1000 and 300 <= card.bandwidth_gb <= 4800
        assert card.budget_bytes(2) == card.total_bytes - CONTEXT_BYTES - NCCL_BYTES - MARGIN_BYTES
