"""Recipe section `optimizer`. No torch, no deepspeed."""

from typing import Literal

from pydantic import Field, field_validator

from memdiff.runtime.section import Float, Int, Section


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019) on the fp32 masters that ZeRO-2 splits over the ranks."""

    kind: Literal["adamw"] = "adamw"
    bits: Literal[8, 32] = Field(default=32, description="Of the two moments. 8: bitsandbytes.")
    learning_rate: Float = Field(default=1e-5, gt=0, description="AdamW's step size, the same in every round.")
    weight_decay: Float = Field(default=1e-4, ge=0, description="AdamW's pull of the weights towards zero.")
    betas: tuple[Float, Float] = Field(default=(0.9, 0.999), description="Both in [0, 1).")
    epsilon: Float = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")
    clip_norm: Float = Field(default=1.0, ge=0, description="Global gradient norm above which it is scaled. 0: never.")
    warmup_updates: Int = Field(default=0, ge=0, description="The learning rate rises linearly over these updates.")
    ema: Float | None = Field(
        default=None, gt=0, lt=1, description="Decay of an average of the masters; it is what is evaluated and saved."
    )

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if any(not 0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {list(betas)}")
        return betas
