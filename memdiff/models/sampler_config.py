"""Recipe section `sampler`, and which of its steps add noise. No torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from memdiff.runtime.section import Float, Int, Section


class SamplerConfig(Section):
    """The sampling chain: DDIM (Song et al. 2021) on the pipeline's own noise schedule."""

    steps: Int = Field(default=50, ge=1, le=1000, description="K, the number of denoising steps.")
    eta: Float = Field(default=1.0, ge=0, le=1, description="0: deterministic, no density. 1: DDPM-like noise.")
    guidance: Float | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Weight of classifier-free guidance. None, or 1 and less (diffusers' rule): none, the prompt alone "
        "counts. Text models only.",
    )
    negative_prompt: str | None = Field(
        default=None, description="In the empty prompt's place. None: what the pipeline does without one."
    )
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = Field(
        default=None, description="None: what the pipeline's scheduler says."
    )
    clip_gradient: Literal["exact", "straight_through"] = Field(
        default="exact",
        description="Of x0's pixels that the scheduler clips. exact: zero. straight_through: as if unclipped.",
    )
    sigma_floor: Float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Smallest std of a step, sampled and scored alike; above 0 every step has a density. 0: none.",
    )
    sub_schedule: Literal["quadratic", "linear"] | None = Field(
        default=None,
        description="Timesteps of a shortcut, each step going to the next one: quadratic is denser near the image. "
        "None: diffusers' steps, as timestep_spacing says.",
    )
    final_std: Float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Smallest std of the last step alone, which else adds no noise and has no density. SFT-PG: 0.001.",
    )

    @model_validator(mode="after")
    def _one_spacing(self) -> Self:
        if self.sub_schedule is not None and self.timestep_spacing is not None:
            raise ValueError("sub_schedule and timestep_spacing both choose the timesteps; give one")
        return self


def noisy_steps(sampler: SamplerConfig) -> int:
    """DDIM with eta above 0 adds noise in every step but the last, which needs a floor for it."""
    if sampler.sigma_floor > 0 or (sampler.eta > 0 and sampler.final_std > 0):
        return sampler.steps
    return max(1, sampler.steps - 1) if sampler.eta > 0 else 0
