"""What half precision costs REINFORCE's gradient at each step: `python -m benchmarks.studies.small_sigma [--steps 50]`.

The embedded digits without clipping of x0 (a clamp decides by the last bit what has a gradient), eta 1. A policy in
half precision makes a few images; then each step's gradient sum_i A_i grad log p(x_s | x_t) is taken in four ways, and
held to the truth: J^T z / sigma in fp64 at equal weights and states, J = d mean / d theta, z the noise that was drawn.

    fp64 at the stored states    (x_s - mean_64) / sigma^2 for z / sigma: another policy's mean, and a rounded x_s
    fp64, the mean's error       (mean_half + sigma z - mean_64) / sigma^2: the network's rounding alone, which the
                                 policy that sampled shares, so that it is no error of the gradient
    stored states                the half network, the noise taken from the stored states
    drawn noise                  the half network, the noise drawn once more: what memdiff does

Prints and writes results/small_sigma.md and .json.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.provenance import of_machine
from benchmarks.studies.written import write_study
from memdiff.chain.noise import Noise, Stream
from memdiff.models.config import EmbeddedConfig
from memdiff.models.load import load_policy
from memdiff.models.options import ModelOptions
from memdiff.models.sampler_config import SamplerConfig

CPU = torch.device("cpu")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
IMAGES = 6
ADVANTAGES = torch.tensor([1.0, -0.5, 0.7, -1.2, 0.4, -0.4])
Target = Callable[[torch.Tensor], torch.Tensor]  # the mean to the noise that is taken for drawn, times sigma


def policy_of(dtype: torch.dtype, sampler: SamplerConfig) -> Any:
    """The embedded digits, with x0 as it is predicted."""
    policy: Any = load_policy(
        EmbeddedConfig(kind="embedded", name="digits"), sampler, ModelOptions(dtype=dtype), device=CPU
    )
    policy.schedule = replace(policy.schedule, clip=None)
    return policy


def step_gradient(policy: Any, x_t: torch.Tensor, step: int, scaled_noise: Target) -> torch.Tensor:
    """sum_i A_i J^T (sigma z)_i / sigma^2 of a step, by autograd of the mean alone: P fp64."""
    weights = list(policy.trainable().values())
    mean = policy.mean(x_t.to(policy.dtype), [step] * IMAGES, [""] * IMAGES)
    costate = (ADVANTAGES.view(-1, 1, 1, 1) * scaled_noise(mean.detach())).to(mean.dtype)
    scale = float(costate.abs().max())  # so that nothing leaves fp16's range
    parts = torch.autograd.grad(mean, weights, costate / scale, allow_unused=True)
    total = [torch.zeros(w.numel()) if part is None else part for w, part in zip(weights, parts, strict=True)]
    return torch.cat([part.double().flatten() for part in total]) * (scale / policy.schedule.sigma[step] ** 2)


def errors_by_step(precision: str, sampler: SamplerConfig) -> list[dict[str, float]]:
    """Relative errors of the four ways, a row a step with a density."""
    half, exact = policy_of(HALF[precision], sampler), policy_of(torch.float64, sampler)
    for ours, theirs in zip(exact.trainable().values(), half.trainable().values(), strict=True):
        ours.data.copy_(theirs.data)
    noise = Noise(seed=0, stream=Stream.ROLLOUT, round_number=1, shape=half.shape)
    x_t, rows, sums = noise.initial(range(IMAGES)).to(half.dtype), [], {}
    for step, sigma in enumerate(half.schedule.sigma):
        with torch.no_grad():
            mean_half = half.mean(x_t, [step] * IMAGES, [""] * IMAGES)
        if sigma == 0:
            break
        drawn = sigma * noise.step(range(IMAGES), step)
        x_s = (mean_half + drawn).to(half.dtype)
        ways: dict[str, tuple[Any, Target]] = {
            "truth": (exact, lambda mean, drawn=drawn: drawn),
            "fp64 at the stored states": (exact, lambda mean, x_s=x_s: x_s.double() - mean),
            "fp64, the mean's error": (exact, lambda mean, y=mean_half + drawn: y.double() - mean),
            "stored states": (half, lambda mean, x_s=x_s: x_s.float() - mean),
            "drawn noise": (half, lambda mean, drawn=drawn: drawn),
        }
        got = {name: step_gradient(policy, x_t, step, target) for name, (policy, target) in ways.items()}
        sums = {name: sums.get(name, 0) + gradient for name, gradient in got.items()}
        rows.append({"step": step, "sigma": sigma, **relative(got)})
        x_t = x_s
    return [*rows, {"step": -1, "sigma": 0.0, **relative(sums)}]


def relative(gradients: dict[str, torch.Tensor]) -> dict[str, float]:
    """|g - truth| / |truth| of each but the truth."""
    truth = gradients["truth"]
    return {name: float((g - truth).norm() / truth.norm()) for name, g in gradients.items() if name != "truth"}


def table(title: str, rows: Sequence[dict[str, float]]) -> str:
    """The first, the middle and the last steps, and all of them together."""
    names = list(rows[0])[2:]
    chosen = [*rows[:1], rows[len(rows) // 2], *rows[-4:-1], rows[-1]]
    lines = [f"| {title}: step | sigma | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in chosen:
        step = "all" if row["step"] < 0 else f"{row['step']:.0f}"
        sigma = "" if row["step"] < 0 else f"{row['sigma']:.4f}"
        lines.append(f"| {step} | {sigma} | " + " | ".join(f"{row[name]:.1e}" for name in names) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """A chain of DDIM's and a shortcut with SFT-PG's last step, each in fp16 and bf16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="Of the DDIM chain.")
    options = parser.parse_args()
    machine = of_machine()
    samplers = {
        f"DDIM, {options.steps} steps": SamplerConfig(steps=options.steps, eta=1.0),
        "a shortcut of 10 steps": SamplerConfig(steps=10, eta=1.0, sub_schedule="quadratic", final_std=0.001),
    }
    content = {
        f"{name}, {precision}": errors_by_step(precision, sampler)
        for name, sampler in samplers.items()
        for precision in HALF
    }
    summary = {
        f"{name}: {way}": rows[-1][way] for name, rows in content.items() for way in ("stored states", "drawn noise")
    }
    command = f"python -m benchmarks.studies.small_sigma --steps {options.steps}"
    tables = "\n".join(table(name, rows) for name, rows in content.items())
    note = "Relative errors of the gradient against fp64 with the drawn noise; studies/small_sigma.py names the ways.\n"
    write_study("small_sigma", command, machine, summary, {"steps": content}, f"{note}\n{tables}")


if __name__ == "__main__":
    main()
