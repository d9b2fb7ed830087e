"""What tests of text-to-image policies compare with: diffusers' own pipelines, and plain autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler

from memdiff.chain.noise import Noise, Stream
from memdiff.models.policy import rollout

TEXTS = ["a red cat", "seven dogs and a very long tail of words"]  # the second is cut off
PARTS = (slice(0, 1), slice(1, 2), slice(2, None))  # of `gradients_of`: mean, dx, parameters


class GivenNoise(DDIMScheduler):
    """DDIM whose random part is given, step by step."""

    noise: Noise

    def step(  # pyright: ignore[reportIncompatibleMethodOverride] - the arguments that are not named go on as they are
        self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0, **rest: Any
    ) -> Any:
        rest.pop("generator", None)
        number = self.timesteps.tolist().index(int(timestep))
        drawn = self.noise.step(range(len(sample)), number) if eta > 0 else None
        return super().step(model_output, timestep, sample, eta=eta, variance_noise=drawn, **rest)


def diffusers_images(pipeline: Any, noise: Noise, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents, images) of the pipeline's own call, from `noise`."""
    scheduler: Any = GivenNoise.from_config(pipeline.scheduler.config)
    scheduler.noise = noise
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    latents: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        latents.append(tensors["latents"])
        return tensors

    images = pipeline(
        TEXTS, num_inference_steps=4, latents=noise.initial(range(2)), output_type="pt", callback_on_step_end=keep,
        **options,
    ).images  # fmt: skip
    return latents[-1], images


def noise_of(policy: Any) -> Noise:
    return Noise(seed=1, stream=Stream.SAMPLE, round_number=0, shape=policy.shape)


def sampled(policy: Any) -> tuple[Noise, torch.Tensor]:
    """The noise, and the latents x_0 that the policy makes of it for TEXTS in fp32."""
    policy.encode(TEXTS)
    noise = noise_of(policy)
    return noise, rollout(policy, noise, range(2), TEXTS, batch=2, storage=torch.float32)


def saved_bytes(run: Any) -> int:
    """Bytes kept for the backward by what `run` does."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = run()
    del alive
    return sum(kept.values())


def spread(policy: Any, seed: int = 3) -> None:
    """Gives trainable parameters values of their own: LoRA starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def gradients_of(policy: Any, x: torch.Tensor, steps: Sequence[int], texts: Sequence[str]) -> list[torch.Tensor]:
    """Of a fixed linear function of the step's mean: with respect to x, then to every parameter."""
    x = x.clone().requires_grad_()
    mean = policy.mean(x, steps, texts)
    direction = torch.randn(mean.shape, generator=torch.Generator().manual_seed(9))
    return [mean.detach(), *torch.autograd.grad(mean, [x, *policy.trainable().values()], direction)]


def relative(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Largest difference over largest element, of the worst tensor."""
    return max(
        float((a.detach().float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6))
        for a, b in zip(got, expected, strict=True)
    )


def relative_norm(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """|difference| / |expected| of all tensors as one vector."""
    ours, theirs = (torch.cat([tensor.float().flatten() for tensor in each]) for each in (got, expected))
    return float((ours - theirs).norm() / theirs.norm())
