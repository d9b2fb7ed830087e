"""How the unconditional digits model and the two classifiers are trained."""

# Shapes: B images of a batch, N images of the set, H W pixels (16 x 16), K the ten digits.

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from memdiff.digits.classifiers import NUM_DIGITS, DigitClassifier, new_classifier
from memdiff.digits.scans import SIZE, augment, real_digits, thinned_mix

# Called after each update, to advance a progress bar.
OnUpdate = Callable[[], object]
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Settings:
    """One training run. `ema` is the decay of the weight average that is shipped."""

    seed: int
    updates: int
    batch: int
    learning_rate: float
    weight_decay: float
    ema: float
    augmentation: float


REWARD = Settings(seed=11, updates=1500, batch=64, learning_rate=4e-3, weight_decay=1e-2, ema=0.99, augmentation=1.2)
JUDGE = Settings(seed=23, updates=1500, batch=64, learning_rate=4e-3, weight_decay=5e-2, ema=0.99, augmentation=1.0)
DDPM = Settings(seed=5, updates=2400, batch=64, learning_rate=2e-3, weight_decay=1e-2, ema=0.998, augmentation=0.4)


def batches(num_images: int, settings: Settings, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of `settings.updates` full batches, drawn without replacement until the set is used up."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(settings.updates):
        while len(order) < settings.batch:
            order = torch.cat([order, torch.randperm(num_images, generator=generator)])
        yield order[: settings.batch]
        order = order[settings.batch :]


class Learner(Generic[Net]):
    """A network under AdamW, and the running average of its weights that is shipped in its place.

    The learning rate makes one cycle: up over the first tenth of the updates, then down as a cosine.
    """

    def __init__(self, settings: Settings, new_net: Callable[[], Net], *, clip_norm: float | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.net = new_net().train()
        self._clip_norm = clip_norm
        self._average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self._optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
        )
        self._cycle = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=settings.learning_rate, total_steps=settings.updates + 1, pct_start=0.1
        )

    def update(self, loss: Tensor) -> None:
        """One step down the loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self._clip_norm)
        self._optimizer.step()
        self._cycle.step()
        self._average.update_parameters(self.net)

    def finish(self) -> Net:
        """The network with the averaged weights, frozen."""
        self.net.load_state_dict(self._average.module.state_dict())
        return self.net.eval().requires_grad_(False)


def stratified_timesteps(count: int, num_timesteps: int, generator: torch.Generator) -> Any:
    """One timestep from each of `count` equal strata: the loss varies less than with independent draws. B, int64.

    Any: diffusers asks for an IntTensor.
    """
    strata_B = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (strata_B * num_timesteps).long()


def spoil(images_B1HW: Tensor, targets_BK: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images that are no digit, with the answer a careful classifier gives: they make its confidence mean something.

    By thirds: 4 x 4 blocks shuffled (every digit equally likely), smooth noise (likewise), and two digits laid over
    each other (half and half). Returns: images_B1HW in [0, 1] and target probabilities_BK.
    """
    third = len(images_B1HW) // 3
    unknown_BK = torch.full_like(targets_BK, 1.0 / NUM_DIGITS)
    blocks = F.unfold(images_B1HW[:third], 4, stride=4)
    shuffled = blocks[:, :, torch.randperm(blocks.shape[2], generator=generator)]
    jumbled_B1HW = F.fold(shuffled, (SIZE, SIZE), 4, stride=4)
    coarse = torch.randn(third, 1, SIZE // 2, SIZE // 2, generator=generator)
    noise_B1HW = F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear").clamp(0.0, 1.0)
    last_B1HW, last_BK = images_B1HW[2 * third :], targets_BK[2 * third :]
    overlaid_B1HW = torch.maximum(last_B1HW, last_B1HW.roll(1, dims=0))
    overlaid_BK = (last_BK + last_BK.roll(1, dims=0)) / 2.0
    images = torch.cat([jumbled_B1HW, noise_B1HW, overlaid_B1HW])
    return images, torch.cat([unknown_BK[: 2 * third], overlaid_BK])


def train_classifier(
    which: Literal["reward", "judge"], settings: Settings, on_update: OnUpdate = lambda: None
) -> DigitClassifier:
    """Cross-entropy on augmented training digits, a quarter more of each batch spoilt. Returns the averaged network."""
    images_N1HW, labels_N = real_digits("train")
    generator = torch.Generator().manual_seed(settings.seed)
    learner = Learner(settings, lambda: new_classifier(which))
    for chosen in batches(len(images_N1HW), settings, generator):
        images_B1HW = augment(images_N1HW[chosen], generator, strength=settings.augmentation)
        targets_BK = F.one_hot(labels_N[chosen], NUM_DIGITS).float()
        spoilt_B1HW, spoilt_BK = spoil(images_B1HW[: settings.batch // 4], targets_BK[: settings.batch // 4], generator)
        inputs_B1HW = torch.cat([images_B1HW, spoilt_B1HW])
        # Grain as a 50-step sampler leaves it: clean scans alone would make the networks brittle on samples.
        inputs_B1HW = (inputs_B1HW + 0.04 * torch.randn(inputs_B1HW.shape, generator=generator)).clamp(0.0, 1.0)
        loss = F.cross_entropy(learner.net(inputs_B1HW), torch.cat([targets_BK, spoilt_BK]), label_smoothing=0.02)
        learner.update(loss)
        on_update()
    return learner.finish()


def new_unet() -> UNet2DModel:
    """The untrained denoiser: 1.11 M parameters, self-attention at 8 x 8 and in the middle."""
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )


def new_scheduler() -> DDPMScheduler:
    """T = 1000, linear betas 1e-4 to 0.02, predicts noise, x0 clipped to [-1, 1]. Ho et al. 2020 (DDPM), section 4."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon", clip_sample=True)


def train_ddpm(settings: Settings, on_update: OnUpdate = lambda: None) -> UNet2DModel:
    """The simple loss of DDPM (Ho et al. 2020, equation 14) on the thinned mix. Returns the averaged network."""
    images_N1HW, _ = thinned_mix(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    learner, scheduler = Learner(settings, new_unet, clip_norm=1.0), new_scheduler()
    for chosen in batches(len(images_N1HW), settings, generator):
        x0_B1HW = 2.0 * augment(images_N1HW[chosen], generator, strength=settings.augmentation) - 1.0
        noise_B1HW = torch.randn(x0_B1HW.shape, generator=generator)
        timesteps_B = stratified_timesteps(settings.batch, scheduler.config["num_train_timesteps"], generator)
        noisy_B1HW = scheduler.add_noise(x0_B1HW, noise_B1HW, timesteps_B)
        loss = F.mse_loss(learner.net(noisy_B1HW, timesteps_B).sample, noise_B1HW)
        learner.update(loss)
        on_update()
    return learner.finish()
