"""Text-to-image policies in a VAE's latent space: what Stable Diffusion and SDXL have in common.

Shapes: B rows, C channels, H W pixels of the latent, c h w of the image.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler

from memdiff.errors import ConfigError
from memdiff.models.config import Size, needs_guidance
from memdiff.models.denoiser import Denoiser
from memdiff.models.guidance import guided
from memdiff.models.lora import inject
from memdiff.models.options import ModelOptions
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.scheduler import sampling_chain
from memdiff.models.sizes import image_size
from memdiff.models.text_encoders import Conditioning, TextEncoders
from memdiff.models.unet_policy import UnetPolicy
from memdiff.models.vae_decoder import LatentDecoder
from memdiff.runtime.finite_checks import AllFinite, all_finite
from memdiff.runtime.half_precision import call_network, widen
from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import HOST, place

PIXELS_DECODED = 512 * 512  # pixels of the images decoded at once: one at 512 x 512 and above


@dataclass(frozen=True)
class LatentParts:
    """A pipeline's networks on the host, and what saving it as a whole needs besides."""

    unet: Any
    vae: Any
    scheduler: DDIMScheduler
    text_encoders: Mapping[str, Any]  # text_encoder, text_encoder_2
    tokenizers: Mapping[str, Any]  # tokenizer, tokenizer_2
    size: Size = (None, None)  # of the images in pixels; None: the UNet's own
    zero_negative: bool = False  # without a negative prompt its embedding is zero (SDXL)
    vae_name: str = "the pipeline's own VAE"


class LatentPolicy(UnetPolicy):
    """Fulfils memdiff.models.policy.Policy; its two kinds differ in their conditioning.

    All of the UNet is trained, or the LoRA that `options` describe. VAE and text encoders are frozen; the encoders
    wait on the host. `vae_dtype` is the VAE's, None: that of the others.
    """

    penultimate: ClassVar[bool]  # which hidden state of the text encoders
    pipeline_class: ClassVar[Any]  # that the model is saved as

    def __init__(
        self,
        parts: LatentParts,
        sampler: SamplerConfig,
        options: ModelOptions,
        *,
        device: torch.device,
        vae_dtype: torch.dtype | None = None,
        decode_batch: int | None = None,
        all_finite: AllFinite = all_finite,
    ) -> None:
        self.device, self.dtype, self.adapter = device, options.dtype, options.adapter
        self.guidance, self.guidance_in_two = sampler.guidance, options.guidance_passes == 2
        self.shape, self.image_size = latent_shape(parts)
        check_unet(parts.unet.config)
        self.schedule = sampling_chain(parts.scheduler, sampler)
        self.text = TextEncoders(
            list(zip(parts.tokenizers.values(), parts.text_encoders.values(), strict=True)),
            device=device,
            dtype=options.dtype,
            penultimate=self.penultimate,
            negative=sampler.negative_prompt,
            zero_without=parts.zero_negative,
        )
        vae_dtype = vae_dtype or options.dtype
        torch.nn.Module.to(parts.vae.requires_grad_(False).eval(), dtype=vae_dtype)
        self.decoder = LatentDecoder(
            parts.vae,
            dtype=vae_dtype,
            checkpointing=options.vae_checkpointing,
            batch=decode_batch or max(1, PIXELS_DECODED // math.prod(self.image_size)),
            name=parts.vae_name,
            all_finite=all_finite,
        )
        place(self.decoder.network, device)
        self._denoiser = Denoiser(parts.unet, options, device=device)
        self.unet, self._parts = parts.unet, parts
        self.networks: Mapping[str, torch.nn.Module] = {
            "unet": parts.unet,
            "vae": self.decoder.network,
            **parts.text_encoders,
        }

    def encode(self, prompts: Sequence[str]) -> None:
        """Makes and keeps the embeddings of these prompts; the encoders are on the device for it only."""
        self.text.encode(prompts)

    def warn_of_cuts(self, prompts: Sequence[str]) -> None:
        """One line in the log where prompts are longer than what a text encoder reads."""
        self.text.warn_of_cuts(prompts)

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Of encoded prompts, one row each."""
        return self.text.rows(prompts)

    def predict(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str] = ()) -> torch.Tensor:
        """The UNet's prediction, guided where `sampler.guidance` says: B C H W fp32."""
        timesteps_B = torch.tensor([self.schedule.timesteps[step] for step in steps]).to(self.device, non_blocking=True)
        x_t_BCHW, prompt = widen(x_t_BCHW), self.conditioning(prompts)
        self._denoiser.at_steps(steps)
        if self.guidance is None or not needs_guidance(self.guidance):
            return self._call(x_t_BCHW, timesteps_B, prompt)
        without = self.text.without_prompt(prompt)
        return guided(
            self._call, x_t_BCHW, timesteps_B, prompt, without, weight=self.guidance, in_two=self.guidance_in_two
        )

    def _call(self, x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        arguments = conditioning.arguments()
        return call_network(lambda x: self._denoiser(x, timesteps_B, **arguments), x_BCHW, self.dtype)

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1]: B c h w fp32."""
        with memory_tag("decoder"):
            return self.decoder(x_0_BCHW)

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """LoRA: the file that diffusers' `load_lora_weights` reads. Full fine-tuning: the whole pipeline, in fp32."""
        if self.adapter is not None:
            inject.save_for_diffusers(self.unet, self.adapter, folder, weights, chain_steps=self.schedule.steps)
            return
        parts = self._parts
        frozen = {"vae": parts.vae, **parts.text_encoders}
        pipeline: Any = self.pipeline_class(
            unet=self._denoiser.copy_with(weights),
            scheduler=parts.scheduler,
            **{name: fp32_copy(network) for name, network in frozen.items()},
            **parts.tokenizers,
            **self.pipeline_options(),
        )
        pipeline.save_pretrained(str(folder), safe_serialization=True)

    @abstractmethod
    def pipeline_options(self) -> dict[str, Any]:
        """What the pipeline's constructor takes besides its components."""
        ...


def fp32_copy(network: Any) -> Any:
    """A deep copy of the network on the host, in fp32."""
    return torch.nn.Module.to(copy.deepcopy(network), device=HOST, dtype=torch.float32)


def latent_shape(parts: LatentParts) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """(C H W of the latent, height and width of the image). Raises ConfigError where a side does not divide."""
    pixels = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)  # of an image a latent pixel
    channels = int(parts.vae.config["latent_channels"])
    if parts.unet.config["in_channels"] != channels:
        raise ConfigError(
            f"this UNet takes {parts.unet.config['in_channels']} channels and its VAE makes {channels}; memdiff trains "
            "text-to-image models, not inpainting ones"
        )
    height, width = image_size(parts.unet.config["sample_size"], parts.size, pixels=pixels, unit=pixels)
    return (channels, height // pixels, width // pixels), (height, width)


def check_unet(config: Mapping[str, Any]) -> None:
    """Raises ConfigError where the UNet wants conditioning that is not given here."""
    if config["time_cond_proj_dim"] is not None:
        raise ConfigError("this UNet takes its guidance as an input (a consistency model), which is not supported")
    if config["class_embed_type"] is not None or config["num_class_embeds"] is not None:
        raise ConfigError("this UNet is conditioned on classes; memdiff takes text-to-image ones without")
