"""Recipe section `method`. No torch."""

from typing import Literal

from pydantic import Field, field_validator

from memdiff.section import Float, Int, Section


class ReinforceConfig(Section):
    """REINFORCE over the whole chain; with several updates a round, DDPO (Black et al. 2023)."""

    kind: Literal["reinforce"]
    advantage: Literal["whiten", "center", "leave_one_out"] = Field(
        default="whiten",
        description="whiten: (r - mean) / (std + epsilon); center: r - mean; leave_one_out: r - mean of the others.",
    )
    per_prompt: bool = Field(default=False, description="Mean and std over the images of one prompt, not over all.")
    advantage_epsilon: Float = Field(default=1e-6, gt=0, description="Added to the std: equal rewards give zero.")
    advantage_clip: Float | None = Field(default=None, gt=0, description="Advantages are clamped to +- this. DDPO: 5.")
    log_prob_reduction: Literal["mean", "sum"] = Field(
        default="mean", description="Over the C*H*W dimensions. sum is the density; public code takes the mean."
    )
    step_weights: Literal["uniform", "balanced"] | tuple[Float, ...] = Field(
        default="uniform",
        description="Weight of each step. balanced: every step's gradient at the network's output has equal size.",
    )
    inner_updates: Int = Field(default=1, ge=1, description="Updates on one round's images. Above 1: ratio and clip.")
    ratio_clip: Float = Field(default=1e-4, gt=0, description="Importance ratios are clipped to 1 +- this.")

    @field_validator("step_weights")
    @classmethod
    def _not_negative(cls, weights: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(weights, str) and (not weights or min(weights) < 0 or max(weights) == 0):
            raise ValueError("step_weights must be numbers >= 0, one a step, not all zero")
        return weights


MethodConfig = ReinforceConfig
