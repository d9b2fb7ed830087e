"""Layers that keep less for the backward: the same bits as torch's and diffusers' own, from fewer bytes."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU

from benchmarks.recorder.models import tiny_conditioned_unet, tiny_vae
from memdiff.models.config import AdapterConfig
from memdiff.models.lora import inject
from memdiff.models.low_memory.layers import LeanConv2d, LeanGeglu, LeanSilu, make_lean


def kept_bytes(run: Any) -> tuple[Any, int]:
    """What `run` gives, and the bytes of the different storages that its graph keeps."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return run(), sum(storages.values())


def before_and_after(layer: Any, x: torch.Tensor) -> list[tuple[list[torch.Tensor], int]]:
    """(output and every gradient, kept bytes) of the layer as it is and made lean."""
    gradients_and_bytes = []
    for lean in (False, True):
        if lean:
            make_lean(layer)
        leaf = x.clone().requires_grad_()
        y, kept = kept_bytes(lambda leaf=leaf: layer(leaf))
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        gradients_and_bytes.append(([y.detach(), *torch.autograd.grad(y, (leaf, *trained), torch.ones_like(y))], kept))
    assert all(torch.equal(a, b) for a, b in zip(gradients_and_bytes[0][0], gradients_and_bytes[1][0], strict=True))
    return gradients_and_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 1), (1, 1, 0)], ids=["3x3", "stride 2", "1x1"])
def test_a_frozen_convolution_keeps_no_input(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """The gradient of its input is torch's, bit for bit; only the weight is kept."""
    size, stride, padding = shape
    layer: Any = torch.nn.Conv2d(6, 8, size, stride, padding).to(dtype).requires_grad_(False)
    x = torch.randn(2, 6, 9, 9, dtype=dtype, generator=torch.Generator().manual_seed(0))
    (_, before), (_, after) = before_and_after(layer, x)
    assert type(layer) is LeanConv2d
    assert after == layer.weight.numel() * layer.weight.element_size() < before


def test_a_trained_convolution_is_torchs() -> None:
    layer: Any = torch.nn.Conv2d(3, 4, 3)
    make_lean(layer)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None and x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_geglu_keeps_its_projection_alone(dtype: torch.dtype) -> None:
    """The same bits forward and backward, weights' gradients too; gelu(gate), a third, is not kept."""
    torch.manual_seed(0)
    layer: Any = GEGLU(8, 32).to(dtype)
    x = torch.randn(2, 5, 8, dtype=dtype)
    (_, before), (_, after) = before_and_after(layer, x)
    assert type(layer) is LeanGeglu
    assert before - after == 2 * 5 * 32 * x.element_size()


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_norm_and_its_silu_keep_the_norms_input(dtype: torch.dtype, trained: bool) -> None:
    """The same bits, weight's and bias' gradients too, without the tensor between the two."""
    torch.manual_seed(0)
    layer: Any = torch.nn.Sequential(torch.nn.GroupNorm(2, 6), torch.nn.SiLU()).to(dtype)
    torch.nn.init.normal_(layer[0].weight)
    torch.nn.init.normal_(layer[0].bias)
    layer.requires_grad_(trained)
    x = torch.randn(2, 6, 9, 9, dtype=dtype)
    (_, before), (_, after) = before_and_after(layer, x)
    assert type(layer[1]) is LeanSilu
    # Torch keeps the bias in neither; we do, to norm again.
    assert before - after == (x.numel() - layer[0].bias.numel()) * x.element_size()


def test_what_lies_between_a_norm_and_its_silu_counts() -> None:
    """A tensor made of the norm's output, or written over, is a SiLU's own input."""
    norm, silu = torch.nn.GroupNorm(2, 6), torch.nn.SiLU()
    make_lean(torch.nn.ModuleList([norm, silu]))
    x = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    normed = torch.nn.functional.group_norm(x, 2, norm.weight, norm.bias)
    (expected,) = torch.autograd.grad(torch.nn.functional.silu(2 * normed).sum(), x)
    for change in (lambda y: y * 2, lambda y: y.mul_(2)):
        (gradient,) = torch.autograd.grad(silu(change(norm(x))).sum(), x)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


def test_a_unet_with_an_adapter() -> None:
    """LoRA on attention and convolutions: every gradient bit for bit, from at most 0.92 of the bytes."""
    torch.manual_seed(0)
    plain = tiny_conditioned_unet().eval().requires_grad_(False)
    inject.inject(plain, AdapterConfig(rank=2, convolutions=True))
    lean = copy.deepcopy(plain)
    make_lean(lean)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 12, plain.config["cross_attention_dim"])
    gradients_and_bytes = []
    for network in (plain, lean):
        leaf = x.clone().requires_grad_()
        y, kept = kept_bytes(lambda network=network, leaf=leaf: network(leaf, torch.tensor([3, 500]), text).sample)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradients_and_bytes.append(([y.detach(), *torch.autograd.grad(y, (leaf, *trained), torch.ones_like(y))], kept))
    assert all(torch.equal(a, b) for a, b in zip(gradients_and_bytes[0][0], gradients_and_bytes[1][0], strict=True))
    assert gradients_and_bytes[1][1] <= 0.92 * gradients_and_bytes[0][1]
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), lean.state_dict().values(), strict=True))


def test_a_decoder() -> None:
    """The latent's gradient bit for bit, from at most 0.75 of the bytes."""
    plain: Any = tiny_vae().eval().requires_grad_(False)
    lean = copy.deepcopy(plain)
    make_lean(lean)
    z = torch.randn(1, 4, 8, 8)
    gradients_and_bytes = []
    for vae in (plain, lean):
        leaf = z.clone().requires_grad_()
        y, kept = kept_bytes(lambda vae=vae, leaf=leaf: vae.decode(leaf).sample)
        gradients_and_bytes.append((torch.autograd.grad(y, leaf, torch.ones_like(y))[0], kept))
    assert (
        torch.equal(gradients_and_bytes[0][0], gradients_and_bytes[1][0])
        and gradients_and_bytes[1][1] <= 0.75 * gradients_and_bytes[0][1]
    )
