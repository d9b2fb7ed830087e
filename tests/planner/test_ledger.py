"""The ledger of live bytes, on graphs whose bytes are counted by hand.

n elements of fp32 are 4 n bytes.
"""

from itertools import accumulate

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from memdiff.planner.ledger import Ledger
from memdiff.runtime.memory_tags import memory_tag

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


def test_categories_by_word() -> None:
    """The innermost word counts; a storage keeps its own, whoever views it; `enter` can hand it over. At the peak: 1
    unit of trajectory, 2 of the reward, 1 of activations."""
    with Ledger() as ledger:
        with memory_tag("trajectory"):
            states = torch.ones(N)
        with memory_tag("decoder"), memory_tag("reward"):
            scores = states.view(10, -1).add(1), torch.ones(N)
        plain = torch.ones(N)
        assert ledger.live["trajectory"] == ledger.live["activations"] == UNIT
        assert ledger.live["reward"] == 2 * UNIT and ledger.live["decoder"] == 0
        ledger.enter([plain], "optimizer")
        assert ledger.live["optimizer"] == UNIT and ledger.live["activations"] == 0
        assert ledger.live_bytes == ledger.peak_bytes == 4 * UNIT
        del scores, plain, states
    assert ledger.live_bytes == 0 and not any(ledger.live.values())
    assert ledger.peak.categories["reward"] == 2 * UNIT


def test_a_backward_has_its_forwards_category() -> None:
    """y = exp x is said to be the decoder's; nothing is said in the backward, whose result, d x, is the decoder's too;
    that of the plain exp before it is not. A checkpoint that runs again in a backward stays with its block."""
    x = torch.ones(N, requires_grad=True)
    with Ledger() as ledger:
        h = x.exp()
        with memory_tag("decoder"):
            y = h.exp()
        ledger.reset_peak()
        (d_h,) = torch.autograd.grad(y.sum(), h, retain_graph=True)
        assert ledger.live["decoder"] == 2 * UNIT  # y and d h
        (d_x,) = torch.autograd.grad(h, x, torch.ones_like(h))
        assert ledger.live["activations"] == 2 * UNIT and ledger.live["decoder"] == 2 * UNIT
        del h, y, d_h, d_x
        with memory_tag("reward"):
            again = checkpoint(lambda t: (0.1 * t).exp().sin(), x, use_reentrant=False)
        assert isinstance(again, torch.Tensor)
        ledger.reset_peak()
        torch.autograd.grad(again.sum(), x)
        # Recomputed: 0.1 x, exp, sin (the last result at least until its gradient is there), beside the first result.
        assert ledger.peak.categories["reward"] >= 4 * UNIT and ledger.peak.categories["activations"] <= 8


def test_peaks_by_phase_and_events() -> None:
    """Rollout: 1 unit, and 3 at its peak. Train starts with the one that lives on, and makes one more. The events add
    up to what is alive at every moment."""
    with Ledger(events=True) as ledger:
        with ledger.phase("rollout"):
            kept = torch.ones(N)
            dropped = torch.ones(2 * N)
            del dropped
        with ledger.phase("train"):
            more = kept + 1
        assert {name: peak.bytes for name, peak in ledger.peaks.items()} == {"rollout": 3 * UNIT, "train": 2 * UNIT}
        assert ledger.peak_bytes == 3 * UNIT and ledger.events is not None
        live = list(accumulate(event.bytes for event in ledger.events))
        assert max(live) == 3 * UNIT and live[-1] == ledger.live_bytes == 2 * UNIT
        assert {event.phase for event in ledger.events} == {"rollout", "train"}
        del kept, more


def test_the_module_at_the_peak() -> None:
    """Of two layers the wide one makes the forward's peak by its result.

    The backward keeps both weights' gradients: its peak is where the second of them, the first layer's, is made.
    """
    net = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 5 * N, bias=False))
    x = torch.ones(1, 10)
    with Ledger(networks={"net": net}) as ledger:
        y = net(x)
        assert ledger.peak.module == "net.1" and ledger.peak.bytes == 40 + 5 * UNIT
        ledger.reset_peak()
        gradients = torch.autograd.grad(y.sum(), list(net.parameters()))
        assert ledger.peak.module == "net.0" and ledger.live_bytes >= 50 * UNIT
        del gradients, y


def test_flops_by_hand() -> None:
    """(8, 10) @ (10, 20): 2 x 8 x 10 x 20 = 3,200; its backward makes both gradients, twice that. Attention of 2 heads,
    16 x 16 positions, width 8: two products of 2 x 2 x 16 x 16 x 8 = 16,384 together. A checkpoint's second forward is
    counted, and told apart."""
    a, b = torch.ones(8, 10, requires_grad=True), torch.ones(10, 20, requires_grad=True)
    with Ledger() as ledger:
        with ledger.phase("forward"):
            y = a @ b
        with ledger.phase("backward"):
            torch.autograd.grad(y.sum(), (a, b))
        with ledger.phase("attention"), torch.no_grad():
            q = torch.ones(1, 2, 16, 8)
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
        with ledger.phase("again"):
            y = checkpoint(lambda a, b: (a @ b).exp(), a, b, use_reentrant=False)
            torch.autograd.grad(torch.as_tensor(y).sum(), (a, b))
    assert ledger.flops == {"forward": 3200, "backward": 6400, "attention": 16_384, "again": 4 * 3200}
    assert ledger.recomputed_flops == {"again": 3200}
