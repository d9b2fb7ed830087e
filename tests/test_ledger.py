"""The ledger of live bytes, on graphs whose bytes are counted by hand.

n elements of fp32 are 4 n bytes.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from memdiff.memory.ledger import Ledger

N = 1000
UNIT = 4 * N  # bytes of one tensor of the tests


def test_tensors_count_while_they_live() -> None:
    """Two made, one dropped, one more made: 1, 2, 1, 2 units live, 2 at the peak; nothing is left afterwards."""
    with Ledger() as ledger:
        a = torch.ones(N)
        assert ledger.live_bytes == UNIT
        b = a + 1
        assert ledger.live_bytes == 2 * UNIT
        del a
        assert ledger.live_bytes == UNIT
        c = b + 1
        del b, c
    assert (ledger.live_bytes, ledger.peak_bytes) == (0, 2 * UNIT)


def test_views_and_in_place_results_are_not_counted_twice() -> None:
    """Reshaped, sliced, transposed, added to in place: one storage, and it lives as long as its last view."""
    with Ledger() as ledger:
        a = torch.ones(N)
        views = [a.view(10, -1), a[: N // 2], a.view(10, -1).T, a.expand(5, N), a.detach(), a.add_(1)]
        assert ledger.live_bytes == ledger.peak_bytes == UNIT
        del a
        assert ledger.live_bytes == UNIT
        del views
        assert ledger.live_bytes == 0


def test_what_was_there_before_counts_only_if_entered() -> None:
    """Reading, viewing and changing a foreign tensor costs nothing; `enter` counts it, once."""
    before = torch.ones(N)
    with Ledger() as ledger:
        before.view(10, -1).mul_(2)
        result = before + 1
        assert ledger.live_bytes == UNIT
        ledger.enter([before, before[:10]])
        assert ledger.live_bytes == 2 * UNIT
        del result
    assert ledger.live_bytes == UNIT
    del before
    assert ledger.live_bytes == 0


def test_what_autograd_keeps_counts() -> None:
    """x -> a = exp x -> b = exp a -> sum: exp keeps its result, so a and b stay though nobody names them. The backward
    holds them and the gradients d b (the sum's 1, expanded: 4 bytes) and d a: 3 units and the scalars at the peak; then
    the gradient of x alone."""
    x = torch.ones(N, requires_grad=True)
    with Ledger() as ledger:
        total = x.exp().exp().sum()
        assert ledger.live_bytes == 2 * UNIT + 4
        ledger.reset_peak()
        (gradient,) = torch.autograd.grad(total, x)
        assert 3 * UNIT <= ledger.peak_bytes <= 3 * UNIT + 16
        assert ledger.live_bytes == UNIT + 4
        del total, gradient
    assert ledger.live_bytes == 0


def test_checkpointing_is_seen() -> None:
    """Ten layers of three exp keep 30 units; checkpointed, nine inputs (the first is foreign) and the result."""
    x = torch.zeros(N, requires_grad=True)

    def layer(h: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            h = (0.1 * h).exp()
        return h

    def kept(*, again: bool) -> int:
        with Ledger() as ledger:
            h = x
            for _ in range(10):
                h = checkpoint(layer, h, use_reentrant=False) if again else layer(h)
            assert isinstance(h, torch.Tensor)
            return ledger.live_bytes

    assert kept(again=False) == 30 * UNIT
    assert kept(again=True) == 10 * UNIT


def test_resizing_and_other_dtypes() -> None:
    """fp64 counts 8 bytes an element; a storage that is resized in place counts its new size."""
    with Ledger() as ledger:
        a = torch.ones(N, dtype=torch.float64)
        assert ledger.live_bytes == 2 * UNIT
        a.resize_(2 * N)
        assert ledger.live_bytes == 4 * UNIT
        del a
        assert ledger.live_bytes == 0


@pytest.mark.parametrize(("device", "expected"), [("cpu", UNIT), ("meta", 4 * UNIT)])
def test_one_device_at_a_time(device: str, expected: int) -> None:
    """Only storages of the device asked for."""
    with Ledger(device=torch.device(device)) as ledger:
        kept = torch.ones(N), torch.ones(4 * N, device="meta")
        assert ledger.live_bytes == expected
        del kept
