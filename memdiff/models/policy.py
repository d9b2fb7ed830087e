"""What methods, the trainer and the sampler know of a model.

Shapes: B rows, C channels, H W pixels of what is denoised (image or latent), c h w of the decoded image.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from memdiff.chain.ddim import step_sigma
from memdiff.chain.noise import Noise
from memdiff.chain.schedule import Schedule
from memdiff.models.batches_that_fit import batches_that_fit
from memdiff.runtime.placement import upload

StoreState = Callable[[int, range, torch.Tensor], None]


class Policy(Protocol):
    """Denoiser, conditioning and decoder on one device, and the chain they run.

    Rows of one call may stand at different steps, but must agree on `trains(step)`. Prompts are encoded before.
    """

    schedule: Schedule
    shape: tuple[int, int, int]  # of x_t
    device: torch.device
    dtype: torch.dtype  # that the denoiser runs in
    networks: Mapping[str, torch.nn.Module]  # unet, vae, text_encoder, text_encoder_2: what can be moved

    def encode(self, prompts: Sequence[str]) -> None:
        """Makes and keeps the embeddings of these prompts, and of the empty one, where they are not known yet.

        The encoders come to the device for it and leave afterwards.
        """
        ...

    def warn_of_cuts(self, prompts: Sequence[str]) -> None:
        """One line in the log where prompts are longer than what a text encoder reads."""
        ...

    def predict(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        """The network's (guided) prediction, B C H W fp32. Differentiable in x and parameters."""
        ...

    def mean(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        """Mean of p(x_s | x_t), B C H W fp32. Differentiable in x and parameters."""
        ...

    def x0(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        """x_0 as one evaluation predicts it, clipped where the scheduler clips: B C H W fp32."""
        ...

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], B c h w fp32. Differentiable in x."""
        ...

    def train_only(self, modules: Sequence[str]) -> None:
        """Freezes the denoiser outside these modules. Raises ConfigError where one of them does not exist."""
        ...

    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        """What is trained, by name, in a fixed order."""
        ...

    def trains(self, step: int) -> bool:
        """Whether a trainable parameter takes part at this step: an adapter may have a window of steps."""
        ...

    @property
    def separable(self) -> bool:
        """Whether the images of one call can have trained weights of their own: an adapter's can."""
        ...

    def per_image_weights(self, images: int) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """Inside, each image of a call of `images` rows has trained weights of its own, equal ones.

        Yields them in the order of `trainable`, each `images` times its parameter's shape: what one image adds to a
        gradient is that of its own. With one image they are the parameters. Pull inside, too.
        """
        ...

    def base(self) -> AbstractContextManager[None]:
        """Inside, predictions are those of the model before training: adapters off, or a frozen copy.

        Raises ConfigError where all of the network is trained and no copy was kept.
        """
        ...

    def attach(
        self, sources: Sequence[tuple[Path, float]], *, scale: float = 1.0, steps: tuple[int, int] | None = None
    ) -> None:
        """Adds saved adapters (files or folders), each with a weight, for sampling: dW = scale sum_i w_i dW_i.

        `steps`: [start, end) of the chain in which they act (None: those they were saved with, or all). Raises
        ConfigError where one does not fit the model or its chain.
        """
        ...

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Writes what diffusers loads, with `weights` (fp32, host, names of `trainable`) for the working copy."""
        ...


def rollout(
    policy: Policy,
    noise: Noise,
    images: Sequence[int],
    prompts: Sequence[str],
    *,
    batch: int,
    storage: torch.dtype,
    until: int | None = None,
    store: StoreState | None = None,
    on_step: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Denoises images (numbers in the round; `prompts` one each) without a graph, in batches of one shape: n C H W.

    A batch that memory runs out in is made again in halves, of which `store` and `on_step` are told again.

    The result is the state after `until` steps (None: all of them, x_0).
    `storage` is the dtype to which every state is rounded before it goes on. `store(state, rows, x)` gets each state
    of contiguous rows (0-based in this call); `on_step(count)` is told how many image-steps are done.
    """

    def denoise(padded: list[int], count: int) -> torch.Tensor:
        numbers = [images[row] for row in padded]
        texts = [prompts[row] for row in padded]
        rows = range(padded[0], padded[0] + count)
        x = upload(noise.initial(numbers).to(storage), policy.device)
        if store:
            store(0, rows, x[:count])
        for step in range(policy.schedule.steps if until is None else until):
            x = sample_step(policy, noise, x, step, numbers, texts).to(storage)
            if store:
                store(step + 1, rows, x[:count])
            if on_step:
                on_step(count)
        return x[:count]

    finished = list(batches_that_fit(policy, "denoiser", range(len(images)), batch, denoise))
    return torch.cat(finished) if finished else torch.empty(0, *policy.shape, dtype=storage, device=policy.device)


def decode_what_fits(policy: Policy, x_0_nCHW: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1], n c h w, of all at once or of as large parts as there is memory for. No graph is made."""
    if not len(x_0_nCHW):
        return policy.decode(x_0_nCHW)

    def decode(rows: list[int], count: int) -> torch.Tensor:
        return policy.decode(x_0_nCHW[rows[0] : rows[0] + count])

    with torch.no_grad():
        parts = list(batches_that_fit(policy, "decoder", range(len(x_0_nCHW)), len(x_0_nCHW), decode))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.no_grad()
def sample_step(
    policy: Policy, noise: Noise, x_t_BCHW: torch.Tensor, step: int, images: Sequence[int], prompts: Sequence[str]
) -> torch.Tensor:
    """x_s ~ p(x_s | x_t) for rows that stand at the same step: B C H W fp32."""
    mean_BCHW = policy.mean(x_t_BCHW, [step] * len(images), prompts)
    return with_noise(policy.schedule, noise, mean_BCHW, step, images)


def with_noise(
    schedule: Schedule, noise: Noise, mean_BCHW: torch.Tensor, step: int, images: Sequence[int]
) -> torch.Tensor:
    """mean + sigma z of a step, z drawn for these images: B C H W. Just the mean where sigma is 0."""
    if schedule.sigma[step] == 0:
        return mean_BCHW
    drawn_BCHW = upload(noise.step(images, step), mean_BCHW.device)
    return mean_BCHW + step_sigma([step] * len(images), schedule, mean_BCHW) * drawn_BCHW
