"""Feed-forward layers that are run again in the backward: the same bits from their norm's input alone."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch.utils.checkpoint import checkpoint

from memdiff.errors import ConfigError
from memdiff.models.low_memory.feed_forwards import RecomputedFeedForward, recompute_feed_forwards
from memdiff.models.low_memory.layers import make_lean
from tests.gradients.test_low_memory_layers import kept_bytes
from tests.helpers.tiny import tiny_unet

ROWS, TOKENS, FEATURES = 2, 5, 8


def block(**options: Any) -> Any:
    """A transformer block as Stable Diffusion has them, small."""
    torch.manual_seed(0)
    made = BasicTransformerBlock(FEATURES, 2, 4, cross_attention_dim=6, activation_fn="geglu", **options)
    make_lean(made)
    return made


recomputed: list[Any] = []  # what a checkpoint ran again in this test


def again(call: Any, *arguments: Any) -> Any:
    """A checkpoint that counts."""
    recomputed.append(call)
    return checkpoint(call, *arguments, use_reentrant=False)


@pytest.fixture(autouse=True)
def _count() -> None:
    recomputed.clear()


def run(made: Any, x: torch.Tensor, text: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Output and gradients, x's first, and the bytes that the graph keeps."""
    leaf = x.clone().requires_grad_()
    y, kept = kept_bytes(lambda: made(leaf, encoder_hidden_states=text))
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *trained])], kept


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_it_keeps_its_norms_input_alone(dtype: torch.dtype, trained: bool) -> None:
    """Every gradient bit for bit. Gone are the projection, eight times as wide, and the norm's mean and 1/std; and,
    where the projection is trained, the norm's output and what the second layer reads."""
    plain = block().to(dtype).requires_grad_(trained)
    lean = copy.deepcopy(plain)
    recompute_feed_forwards(lean, again)
    x, text = torch.randn(ROWS, TOKENS, FEATURES, dtype=dtype), torch.randn(ROWS, 3, 6, dtype=dtype)
    (expected, before), (actual_tensors, after) = run(plain, x, text), run(lean, x, text)
    assert len(recomputed) == trained  # by hand where it is frozen
    assert all(torch.equal(a, b) for a, b in zip(expected, actual_tensors, strict=True))
    size, tokens = x.element_size(), ROWS * TOKENS
    statistics = 2 * tokens * max(size, 4)
    gone = tokens * FEATURES * size * (8 + (1 + 4 if trained else 0))
    weights = sum(p.numel() for p in [*plain.norm3.parameters(), *plain.ff.parameters()]) * size
    assert gone <= before - after <= gone + statistics + weights


def test_switched_off_it_is_diffusers() -> None:
    """As `disable_gradient_checkpointing` does; and without a graph nothing is made again."""
    made = block()
    x, text = torch.randn(ROWS, TOKENS, FEATURES), torch.randn(ROWS, 3, 6)
    expected, before = run(made, x, text)
    recompute_feed_forwards(made, again)
    assert type(made.ff) is RecomputedFeedForward
    with torch.no_grad():
        assert torch.equal(made(x, encoder_hidden_states=text), expected[0])
    made.ff.gradient_checkpointing = False
    actual_tensors, after = run(made, x, text)
    assert recomputed == [] and before == after
    assert all(torch.equal(a, b) for a, b in zip(expected, actual_tensors, strict=True))


def test_what_lies_between_a_norm_and_its_layer_counts() -> None:
    """A tensor made of the norm's output, or written over, is the layer's own input."""
    made = block().requires_grad_(False)
    x = torch.randn(ROWS, TOKENS, FEATURES).requires_grad_()
    (expected,) = torch.autograd.grad(made.ff(2 * made.norm3(x)).sum(), x)
    recompute_feed_forwards(made, again)
    for change in (lambda y: 2 * y, lambda y: y.mul_(2)):
        (gradient,) = torch.autograd.grad(made.ff(change(made.norm3(x))).sum(), x)
        assert torch.equal(gradient, expected)
    assert len(recomputed) == 2


def test_a_unet_without_any_is_refused() -> None:
    """In one line that says what to do: a DDPM has none."""
    with pytest.raises(ConfigError, match=r"no feed-forward layers .* set it to blocks"):
        recompute_feed_forwards(tiny_unet(0, 8), again)
