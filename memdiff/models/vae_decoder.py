"""From latents to images: the decoder half of a VAE, differentiable, recomputed part by part where asked.

Shapes: B images, C H W of the latent, c h w of the image.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock, UNetMidBlock2D, UpDecoderBlock2D
from torch.utils.checkpoint import checkpoint

from memdiff.errors import ConfigError, NumericError
from memdiff.models.config import VaeCheckpointing
from memdiff.models.low_memory.layers import make_lean
from memdiff.runtime.finite_checks import AllFinite, all_finite
from memdiff.runtime.fixed_batches import fixed_batches
from memdiff.runtime.half_precision import call_network, widen

Layer = Callable[[torch.Tensor], torch.Tensor]


class DecoderNetwork(torch.nn.Module):
    """What decoding needs of a VAE; its other half stays where it is. The modules are the VAE's own.

    `checkpointing`: none; blocks, diffusers' own, recomputes each resolution as a whole; layers does so too and, inside
    it, recomputes each resnet, attention and upsampler by itself, and the output layers. Gradients are the same. Peaks
    of Stable Diffusion's at 512 x 512 in fp16, forward and backward, live MiB with the weights: 1,986, 1,270, 822.
    """

    def __init__(self, vae: Any, checkpointing: VaeCheckpointing) -> None:
        super().__init__()
        self.post_quant_conv: Any = vae.post_quant_conv  # None where the config has none
        self.decoder: Any = vae.decoder
        self.by_layers = checkpointing == "layers"
        make_lean(self)
        if checkpointing == "blocks":
            vae.enable_gradient_checkpointing()
        if self.by_layers:
            _check_blocks(vae.decoder)

    def forward(self, z_BCHW: torch.Tensor) -> torch.Tensor:
        """z (unscaled) -> images in [-1, 1], not clamped."""
        x = z_BCHW if self.post_quant_conv is None else self.post_quant_conv(z_BCHW)
        if not (self.by_layers and torch.is_grad_enabled()):
            return self.decoder(x)
        x = self.decoder.conv_in(x)
        for block in self._blocks():
            x = _recomputed(partial(_run, block), x)
        return _recomputed(self._last_layers, x)

    def _blocks(self) -> Iterator[list[Layer]]:
        """The layers of each block, in the order of diffusers' Decoder.forward."""
        middle = self.decoder.mid_block
        layers: list[Layer] = [partial(middle.resnets[0], temb=None)]
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            if attention is not None:
                layers.append(attention)
            layers.append(partial(resnet, temb=None))
        yield layers
        for block in self.decoder.up_blocks:
            yield [*(partial(resnet, temb=None) for resnet in block.resnets), *(block.upsamplers or ())]

    def _last_layers(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder.conv_out(self.decoder.conv_act(self.decoder.conv_norm_out(x)))


def _recomputed(layer: Layer, x_BCHW: torch.Tensor) -> torch.Tensor:
    return checkpoint(layer, x_BCHW, use_reentrant=False, preserve_rng_state=False)  # nothing is random in eval mode


def _run(layers: Sequence[Layer], x_BCHW: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        x_BCHW = _recomputed(layer, x_BCHW)
    return x_BCHW


def _check_blocks(decoder: Any) -> None:
    for block, expected in ((decoder.mid_block, UNetMidBlock2D), *((up, UpDecoderBlock2D) for up in decoder.up_blocks)):
        if type(block) is not expected:
            raise ConfigError(
                f"memory.vae_checkpointing: layers can't take a VAE with {type(block).__name__}; use blocks"
            )


class TinyDecoderNetwork(torch.nn.Module):
    """The same of TAESD (AutoencoderTiny): convolutions and ReLU alone, at a few percent of the bytes and FLOPs.

    `checkpointing`: blocks recomputes what lies between two upsamplings as a whole, layers each block of three
    convolutions by itself; the convolutions behind upsamplings with them.
    """

    def __init__(self, vae: Any, checkpointing: VaeCheckpointing) -> None:
        super().__init__()
        self.decoder: Any = vae.decoder
        self.checkpointing: VaeCheckpointing = checkpointing
        make_lean(self)

    def forward(self, z_BCHW: torch.Tensor) -> torch.Tensor:
        """z (as the UNet has it) -> images in [-1, 1], not clamped."""
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self.decoder(z_BCHW)
        x = torch.tanh(z_BCHW / 3) * 3  # DecoderTiny.forward's first line
        for part in self._parts():
            x = _recomputed(part, x)
        return x.mul(2).sub(1)  # and its last

    def _parts(self) -> Iterator[Layer]:
        layers = list(self.decoder.layers)
        starts = [0, *(n for n, layer in enumerate(layers) if self._begins(layer)), len(layers)]
        for start, end in pairwise(starts):
            yield torch.nn.Sequential(*layers[start:end])

    def _begins(self, layer: torch.nn.Module) -> bool:
        """Whether a part begins with this layer: an upsampling, or with `layers` a block too."""
        return isinstance(layer, torch.nn.Upsample) or (
            self.checkpointing == "layers" and isinstance(layer, AutoencoderTinyBlock)
        )


class LatentDecoder:
    """x_0 -> images in [0, 1], in batches of one shape, with gradients scaled where fp16 needs it.

    `all_finite` is injected, so that a plan on fake tensors can leave the question out.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        *,
        dtype: torch.dtype,
        checkpointing: VaeCheckpointing = "none",
        batch: int = 1,
        name: str = "the VAE",
        all_finite: AllFinite = all_finite,
    ) -> None:
        kind = TinyDecoderNetwork if isinstance(vae, AutoencoderTiny) else DecoderNetwork
        self.network = kind(vae, checkpointing)
        self.dtype, self.batch, self.name, self.all_finite = dtype, batch, name, all_finite
        config: Any = vae.config
        self._scaling = float(config["scaling_factor"])
        normalised = config.get("latents_mean") is not None and config.get("latents_std") is not None
        self._mean = list(config["latents_mean"]) if normalised else None
        self._std = list(config["latents_std"]) if normalised else None

    def __call__(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        """B C H W -> B c h w fp32. Raises NumericError where an image is not finite, naming the VAE or the latent."""
        z_BCHW = widen(x_0_BCHW) / self._scaling
        if self._mean is not None and self._std is not None:
            mean_1C11, std_1C11 = (
                torch.tensor(values, dtype=torch.float32).to(z_BCHW.device, non_blocking=True).view(1, -1, 1, 1)
                for values in (self._mean, self._std)
            )
            z_BCHW = widen(x_0_BCHW) * std_1C11 / self._scaling + mean_1C11
        images_BCHW = call_network(self._decode, z_BCHW, self.dtype)
        if not self.all_finite([images_BCHW.detach()]):
            self._refuse(x_0_BCHW)
        return (images_BCHW / 2 + 0.5).clamp(0, 1)

    def _decode(self, z_BCHW: torch.Tensor) -> torch.Tensor:
        if len(z_BCHW) <= self.batch:
            return self.network(z_BCHW)
        parts = []
        for rows, count in fixed_batches(range(len(z_BCHW)), self.batch):
            full = count == len(rows)
            chosen = z_BCHW[rows[0] : rows[0] + len(rows)] if full else torch.stack([z_BCHW[row] for row in rows])
            parts.append(self.network(chosen)[:count])
        return torch.cat(parts)

    def _refuse(self, x_0_BCHW: torch.Tensor) -> None:
        if not self.all_finite([x_0_BCHW.detach()]):
            raise NumericError("the denoised latent is not finite; lower the learning rate, or model.precision: fp32")
        raise NumericError(
            f"{self.name} in {str(self.dtype).removeprefix('torch.')} decodes to images that are not finite; "
            "set model.vae_precision: fp32, or for SDXL model.vae: madebyollin/sdxl-vae-fp16-fix"
        )
