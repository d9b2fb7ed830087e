"""Recipe section `optimizer`. No torch, no deepspeed."""

from typing import Annotated, Literal

from pydantic import Field

from memdiff.runtime.section import Float, Int, Section

Beta = Annotated[Float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019) on the fp32 masters that ZeRO-2 splits over the ranks."""

    kind: Literal["adamw"] = "adamw"
    bits: Literal[8, 32] = Field(default=32, description="Of the two moments. 8: bitsandbytes.")
    learning_rate: Float = Field(default=1e-5, gt=0, le=10, description="AdamW's step size, the same in every round.")
    weight_decay: Float = Field(default=1e-4, ge=0, le=100, description="AdamW's pull of the weights towards zero.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="Both in [0, 1).")
    epsilon: Float = Field(default=1e-8, ge=1e-12, le=1, description="Added to the root of the second moment.")
    clip_norm: Float = Field(
        default=1.0, ge=0, le=1e9, description="Global gradient norm above which it is scaled. 0: never."
    )
    warmup_updates: Int = Field(
        default=0, ge=0, le=10**9, description="The learning rate rises linearly over these updates."
    )
    ema: Float | None = Field(
        default=None, gt=0, lt=1, description="Decay of an average of the masters; it is what is evaluated and saved."
    )
