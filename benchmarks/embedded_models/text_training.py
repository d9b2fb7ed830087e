"""How the embedded text-to-image model is trained: the autoencoder first, then denoiser and text encoder together."""

# Shapes: B pictures of a batch, C channels (3 of pictures, 4 of latents), H W pixels (32 x 32) or latent positions
# (8 x 8), T tokens.

from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.embedded_models.text_data import random_styles, styled
from benchmarks.embedded_models.text_model import new_scheduler, new_text_encoder, new_unet, new_vae
from benchmarks.embedded_models.text_prompts import draw_prompts
from benchmarks.embedded_models.training import Learner, OnUpdate, Settings, batches, stratified_timesteps
from memdiff.digits.scans import augment, real_digits

VAE = Settings(seed=31, updates=600, batch=48, learning_rate=2e-3, weight_decay=1e-2, ema=0.99, augmentation=0.6)
TEXT = Settings(seed=37, updates=2600, batch=48, learning_rate=1e-3, weight_decay=1e-2, ema=0.998, augmentation=0.4)
KL_WEIGHT = 1e-3


class Conditioned(nn.Module):
    """Denoiser and text encoder as one network: they learn together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, latents_BCHW: Tensor, timesteps_B: Tensor, ids_BT: Tensor) -> Tensor:
        """The predicted noise. Returns: BCHW."""
        text_BTD = self.text_encoder(ids_BT).last_hidden_state
        return self.unet(latents_BCHW, timesteps_B, encoder_hidden_states=text_BTD).sample


def token_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Ids as Stable Diffusion's pipeline makes them: cut and padded to the tokenizer's length. Returns: BT, int64."""
    options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return torch.tensor(tokenizer(prompts, **options).input_ids)


def posterior(vae: AutoencoderKL, images_BCHW: Tensor) -> DiagonalGaussianDistribution:
    """The encoder's Gaussian over unscaled latents, of images in [-1, 1]."""
    return vae.encode(images_BCHW, return_dict=False)[0]


def decode(vae: AutoencoderKL, latents_BCHW: Tensor) -> Tensor:
    """Images around [-1, 1], unclamped, of unscaled latents. Returns: BCHW."""
    latents: Any = latents_BCHW  # Any: diffusers asks for a FloatTensor
    return vae.decode(latents, return_dict=False)[0]


def train_vae(settings: Settings, on_update: OnUpdate = lambda: None) -> AutoencoderKL:
    """Squared error + 1e-3 times the divergence from N(0, 1), each a mean over elements. Kingma and Welling 2014.

    Returns: the averaged network; its scaling factor gives latents of the training pictures unit variance.
    """
    images_N1HW, _ = real_digits("train")
    generator = torch.Generator().manual_seed(settings.seed)
    learner = Learner(settings, new_vae, clip_norm=1.0)
    for chosen in batches(len(images_N1HW), settings, generator):
        digits_B1HW = augment(images_N1HW[chosen], generator, strength=settings.augmentation)
        images_BCHW = 2.0 * styled(digits_B1HW, random_styles(settings.batch, generator)) - 1.0
        latents = posterior(learner.net, images_BCHW)
        decoded_BCHW = decode(learner.net, latents.sample(generator))
        divergence = 0.5 * (latents.mean.square() + latents.var - 1.0 - latents.logvar).mean()
        loss = F.mse_loss(decoded_BCHW, images_BCHW) + KL_WEIGHT * divergence
        learner.update(loss)
        on_update()
    net = learner.finish()
    pictures_NCHW = 2.0 * styled(images_N1HW, random_styles(len(images_N1HW), generator)) - 1.0
    encoded = torch.cat([posterior(net, part).sample(generator) for part in pictures_NCHW.split(128)])
    net.register_to_config(scaling_factor=round(1.0 / float(encoded.std()), 5))
    return net


def train_conditioned(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, settings: Settings, on_update: OnUpdate = lambda: None
) -> Conditioned:
    """The simple loss of DDPM (Ho et al. 2020, equation 14) on latents, one fresh prompt a picture.

    Returns: the averaged networks.
    """
    images_N1HW, labels_N = real_digits("train")
    generator, random = torch.Generator().manual_seed(settings.seed), Random(settings.seed)
    learner = Learner(settings, lambda: Conditioned(new_unet(), new_text_encoder(tokenizer)), clip_norm=1.0)
    scheduler = new_scheduler()
    num_timesteps = scheduler.config["num_train_timesteps"]
    for chosen in batches(len(images_N1HW), settings, generator):
        styles = random_styles(settings.batch, generator)
        digits_B1HW = augment(images_N1HW[chosen], generator, strength=settings.augmentation)
        with torch.no_grad():
            encoded = posterior(vae, 2.0 * styled(digits_B1HW, styles) - 1.0)
            latents_BCHW = encoded.sample(generator) * vae.config["scaling_factor"]
        ids_BT = token_ids(tokenizer, draw_prompts(labels_N[chosen].tolist(), styles, random))
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator)
        timesteps_B = stratified_timesteps(settings.batch, num_timesteps, generator)
        noisy_BCHW = scheduler.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        loss = F.mse_loss(learner.net(noisy_BCHW, timesteps_B, ids_BT), noise_BCHW)
        learner.update(loss)
        on_update()
    return learner.finish()
