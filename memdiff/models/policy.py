"""What objectives, the trainer and the sampler know of a model.

Shapes: B rows, C channels, H W pixels of what is denoised (image or latent), c h w of the decoded image.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from memdiff.chain.ddim import step_sigma
from memdiff.chain.noise import Noise
from memdiff.chain.schedule import Schedule
from memdiff.pieces import fixed_batches
from memdiff.placement import place

StoreState = Callable[[int, range, torch.Tensor], None]


class Policy(Protocol):
    """Denoiser, conditioning and decoder on one device, and the chain they run."""

    schedule: Schedule
    shape: tuple[int, int, int]
    device: torch.device
    dtype: torch.dtype

    def mean(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        """Mean of p(x_s | x_t), B C H W fp32; every row at a step of its own. Differentiable in x and parameters."""
        ...

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], B c h w fp32."""
        ...

    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        """What is trained, by name, in a fixed order."""
        ...

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Writes what diffusers loads, with `weights` (fp32, host, names of `trainable`) for the working copy."""
        ...


def rollout(
    policy: Policy,
    noise: Noise,
    images: range,
    prompts: Sequence[str],
    *,
    batch: int,
    storage: torch.dtype,
    store: StoreState | None = None,
    on_step: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Denoises images (numbers in the round; `prompts` one each) without a graph, in batches of one shape: n C H W.

    `storage` is the dtype to which every state is rounded before it goes on. `store(state, rows, x)` gets each state
    of contiguous rows (0-based in this call); `on_step(count)` is told how many image-steps are done.
    """
    finished = []
    for padded, count in fixed_batches(range(len(images)), batch):
        numbers = [images[row] for row in padded]
        texts = [prompts[row] for row in padded]
        rows = range(padded[0], padded[0] + count)
        x = place(noise.initial(numbers).to(storage), policy.device)
        if store:
            store(0, rows, x[:count])
        for step in range(policy.schedule.steps):
            x = sample_step(policy, noise, x, step, numbers, texts).to(storage)
            if store:
                store(step + 1, rows, x[:count])
            if on_step:
                on_step(count)
        finished.append(x[:count])
    return torch.cat(finished) if finished else torch.empty(0, *policy.shape, dtype=storage, device=policy.device)


@torch.no_grad()
def sample_step(
    policy: Policy, noise: Noise, x_t_BCHW: torch.Tensor, step: int, images: Sequence[int], prompts: Sequence[str]
) -> torch.Tensor:
    """x_s ~ p(x_s | x_t) for rows that stand at the same step: B C H W fp32."""
    steps = [step] * len(images)
    mean_BCHW = policy.mean(x_t_BCHW, steps, prompts)
    if policy.schedule.sigma[step] == 0:
        return mean_BCHW
    drawn_BCHW = place(noise.step(images, step), policy.device)
    return mean_BCHW + step_sigma(steps, policy.schedule, mean_BCHW) * drawn_BCHW
