"""A UNet whose images lie channels last: half-precision convolutions of NVIDIA's matrix units want them so.

torch's GroupNorm on CUDA makes its input contiguous and gives a contiguous output, so that the convolution behind it
turns it again, and a plan made on fake tensors of a CPU would not see the copies. Here norm and the SiLU behind it are
one operator that reads and writes channels last and says, by `register_fake`, what it allocates (but for a few numbers
an image and channel): plan and card hold the same bytes. It is made of torch's own operators. Sums are taken in fp32
(fp64 of fp64) without a copy of the images: the variance as E x^2 - (E x)^2, off by 2^-24 (mean / std)^2 of itself.
The backward goes image by image through one fp32 buffer, eight kernels an image and norm, which costs launches: a fused
kernel would go in its place.

Shapes: B rows, C channels, H W pixels, G groups; coefficients of an image and channel B C.
"""

import math
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from memdiff.models.low_memory.layers import LeanConv2d, LeanGroupNorm, LeanSilu
from memdiff.runtime.placement import put_in_place

LAST = torch.channels_last
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_channels_last(network: torch.nn.Module) -> None:
    """Changes norms and frozen kernels in place, once `make_lean` has; names, parameters and results stay.

    Trained kernels stay as they are: DeepSpeed lays them into one flat buffer.
    """
    for module in network.modules():
        if isinstance(module, LeanGroupNorm):
            module.__class__ = NormLast
        elif isinstance(module, LeanConv2d):
            module.__class__ = ConvLast
        elif isinstance(module, Transformer2DModel):
            module.register_forward_hook(_last_again)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D) and isinstance(module.nonlinearity, LeanSilu):
            _with_silu(module.norm1)
            if module.time_embedding_norm == "default":
                _with_silu(module.norm2)
    if isinstance(getattr(network, "conv_act", None), LeanSilu):  # of UNet2DModel and UNet2DConditionModel
        _with_silu(network.conv_norm_out)
    for parameter in network.parameters():
        if parameter.ndim == 4 and not parameter.requires_grad:
            put_in_place(parameter, parameter.detach().contiguous(memory_format=LAST))


def lies_last(x: torch.Tensor) -> bool:
    """Whether it is images that lie channels last and not also channels first, as those of one pixel or channel do."""
    return x.ndim == 4 and x.is_contiguous(memory_format=LAST) and not x.is_contiguous()


def _with_silu(norm: Any) -> None:
    if type(norm) is NormLast:
        norm.__class__ = NormSiluLast


def _last_again(module: Any, inputs: Any, output: Any) -> Any:
    """A transformer makes its images contiguous before it adds what went in."""
    if isinstance(output, tuple):
        return (output[0].contiguous(memory_format=LAST), *output[1:])
    output.sample = output.sample.contiguous(memory_format=LAST)
    return output


class ConvLast(LeanConv2d):
    """A convolution from channels last to channels last. A copy that cuDNN would make by itself is one that is seen."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """B C H W -> B C' H' W'."""
        return super().forward(input.contiguous(memory_format=LAST)).contiguous(memory_format=LAST)


class NormLast(LeanGroupNorm):
    """A GroupNorm by the operator where its images lie channels last."""

    has_silu = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """B C ... -> the same shape and layout."""
        if not lies_last(input):
            return super().forward(input)
        y = group_norm_silu(input, self.weight, self.bias, self.num_groups, self.eps, self.has_silu)[0]
        y.silu_is_done = self.has_silu  # pyright: ignore[reportAttributeAccessIssue]
        return y


class NormSiluLast(NormLast):
    """The same with the SiLU behind it, which `LeanSilu` then leaves out."""

    has_silu = True


@torch.library.custom_op("memdiff::group_norm_silu", mutates_args=())
def group_norm_silu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, with_silu: bool
) -> Tensors:
    """(y, mean B G, rstd B G) of images B C H W that lie channels last; y does too. Statistics at least in fp32."""
    mean_BG, rstd_BG = _statistics(x, groups, eps)
    scale_BC11, shift_BC11 = _coefficients(x, weight, bias, mean_BG, rstd_BG)
    y = torch.empty_like(x)
    torch.addcmul(shift_BC11, x, scale_BC11, out=y)
    return (torch.ops.aten.silu_(y) if with_silu else y), mean_BG, rstd_BG


@group_norm_silu.register_fake
def _(x: torch.Tensor, weight: Any, bias: Any, groups: int, eps: float, with_silu: bool) -> Tensors:
    statistics_BG = x.new_empty(x.shape[0], groups, dtype=wide_dtype(x))
    return torch.empty_like(x), statistics_BG, torch.empty_like(statistics_BG)


@torch.library.custom_op("memdiff::group_norm_silu_backward", mutates_args=())
def group_norm_silu_backward(
    d_y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean_BG: torch.Tensor,
    rstd_BG: torch.Tensor,
    with_silu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(d x, d weight, d bias, the buffer of one image that it worked in: returned so that it is counted).

    With z the norm's output, a = rstd weight, and sums over a group of n elements (Wu and He 2018, equation 1,
    differentiated): d x = a d z - rstd / n (S1 + x^ S2), S1 = sum weight d z, S2 = sum weight d z x^.
    """
    rows, channels, groups = x.shape[0], x.shape[1], mean_BG.shape[1]
    count = x[0].numel() // groups
    scale_BC11, shift_BC11 = _coefficients(x, weight, bias, mean_BG, rstd_BG)
    d_x = torch.empty_like(x)  # until an image's turn has come, d z
    if with_silu:
        torch.addcmul(shift_BC11, x, scale_BC11, out=d_x)
        torch.ops.aten.silu_backward.grad_input(d_y, d_x, grad_input=d_x)
    else:
        d_x.copy_(d_y)
    buffer = torch.empty_like(x[:1], dtype=wide_dtype(x))
    sums_BC = x.new_empty(2, rows, channels, dtype=wide_dtype(x))  # of d z x and of d z, over pixels
    for row in range(rows):
        buffer.copy_(d_x[row : row + 1])
        torch.sum(buffer, dim=(0, 2, 3), out=sums_BC[1, row])
        torch.sum(buffer.mul_(x[row : row + 1]), dim=(0, 2, 3), out=sums_BC[0, row])
    products_BGc, gradients_BGc = sums_BC.view(2, rows, groups, -1)
    mean_BG1, rstd_BG1 = mean_BG[..., None], rstd_BG[..., None]
    normed_BGc = (products_BGc - mean_BG1 * gradients_BGc) * rstd_BG1  # sums of d z x^
    weight_1Gc = weight.to(wide_dtype(x)).view(1, groups, -1)
    s1_BG1 = (weight_1Gc * gradients_BGc).sum(dim=2, keepdim=True)
    s2_BG1 = (weight_1Gc * normed_BGc).sum(dim=2, keepdim=True)
    slope_BG1 = -(rstd_BG1**2) * s2_BG1 / count
    offset_BG1 = -rstd_BG1 * s1_BG1 / count - slope_BG1 * mean_BG1
    slope_BC11, offset_BC11 = (_by_channel(values, channels) for values in (slope_BG1, offset_BG1))
    for row in range(rows):
        here = slice(row, row + 1)
        buffer.copy_(d_x[here]).mul_(scale_BC11[here])
        d_x[here].copy_(buffer.addcmul_(x[here], slope_BC11[here]).add_(offset_BC11[here]))
    d_weight, d_bias = normed_BGc.sum(dim=0).flatten(), gradients_BGc.sum(dim=0).flatten()
    return d_x, d_weight.to(weight.dtype), d_bias.to(bias.dtype), buffer


@group_norm_silu_backward.register_fake
def _(
    d_y: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean_BG: Any, rstd_BG: Any, with_silu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    buffer = torch.empty_like(x[:1], dtype=wide_dtype(x))
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), buffer


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    x, weight, bias, _, _, ctx.with_silu = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _pull(ctx: Any, d_y: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    x, weight, bias, mean_BG, rstd_BG = ctx.saved_tensors
    d_y = d_y.contiguous(memory_format=LAST)
    d_x, d_weight, d_bias, _ = group_norm_silu_backward(d_y, x, weight, bias, mean_BG, rstd_BG, ctx.with_silu)
    return d_x, d_weight, d_bias, None, None, None


group_norm_silu.register_autograd(_pull, setup_context=_keep)


def wide_dtype(x: torch.Tensor) -> torch.dtype:
    """What statistics and sums are in."""
    return torch.promote_types(x.dtype, torch.float32)


def _statistics(x: torch.Tensor, groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1/std of every image's groups: B G. Reductions that widen as they read: nothing is copied on CUDA."""
    rows, channels, height, width = x.shape
    x_BPGc = x.permute(0, 2, 3, 1).reshape(rows, height * width, groups, channels // groups)
    count, dtype = math.prod(x.shape[1:]) // groups, wide_dtype(x)
    mean_BG = x_BPGc.sum(dim=(1, 3), dtype=dtype) / count
    square_BG = torch.linalg.vector_norm(x_BPGc, dim=(1, 3), dtype=dtype).square() / count
    return mean_BG, (square_BG - mean_BG.square()).clamp(min=0).add(eps).rsqrt()


def _coefficients(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean_BG: torch.Tensor, rstd_BG: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """z = scale x + shift of each image and channel: B C 1 1."""
    dtype, groups = wide_dtype(x), mean_BG.shape[1]
    weight_1Gc, bias_1Gc = (values.to(dtype).view(1, groups, -1) for values in (weight, bias))
    scale_BGc = weight_1Gc * rstd_BG[..., None]
    shift_BGc = bias_1Gc - mean_BG[..., None] * scale_BGc
    shape = (x.shape[0], x.shape[1], 1, 1)
    return scale_BGc.reshape(shape), shift_BGc.reshape(shape)


def _by_channel(values_BG1: torch.Tensor, channels: int) -> torch.Tensor:
    """One value a group, as one a channel: B C 1 1."""
    rows, groups, _ = values_BG1.shape
    return values_BG1.expand(rows, groups, channels // groups).reshape(rows, channels, 1, 1)
