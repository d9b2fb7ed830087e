"""Recipe section `method` of REINFORCE. No torch."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from memdiff.memory.knobs import Knobs
from memdiff.methods.learners_config import LEARNT_BYTES, ValueBaselineConfig
from memdiff.methods.workload import Chain, ImageShape, Workload
from memdiff.runtime.section import Float, Int, Section

StepWeight = Annotated[Float, Field(ge=0, le=1e9)]


class ReinforceConfig(Section):
    """REINFORCE over the whole chain; with several updates a round, DDPO (Black et al. 2023)."""

    takes_reward: ClassVar[bool] = True

    kind: Literal["reinforce"]
    advantage: Literal["whiten", "center", "leave_one_out"] = Field(
        default="whiten",
        description="whiten: (r - mean) / std; center: r - mean; leave_one_out: r - mean of the others.",
    )
    per_prompt: bool = Field(default=False, description="Mean and std over the rewards of one prompt, not over all.")
    prompt_memory: Int = Field(
        default=16,
        ge=0,
        le=10**6,
        description="per_prompt: over a prompt's latest so many rewards, earlier rounds' too; until it has them, over "
        "all of the round. 0: over this round's images of the prompt.",
    )
    advantage_epsilon: Float = Field(
        default=1e-6,
        ge=0,
        lt=1,
        description="whiten: rewards whose std is no more than this share of the largest one count as equal, and give "
        "zero. Above it advantages have unit std whatever the rewards' scale.",
    )
    advantage_clip: Float | None = Field(
        default=None, gt=0, le=1e9, description="Advantages are clamped to +- this. DDPO: 5."
    )
    baseline: Literal["none", "predicted_image", "value"] = Field(
        default="none",
        description="Taken off the advantages step by step. predicted_image: the reward of the image predicted there; "
        "less noise for one more pass over the chain and as many reward queries as steps. value: what a value function "
        "of x_t, which learns beside the model, expects (DPOK).",
    )
    value: ValueBaselineConfig = Field(default=ValueBaselineConfig(), description="Of baseline: value.")
    log_prob_reduction: Literal["mean", "sum"] = Field(
        default="mean", description="Over the C*H*W dimensions. sum is the density; public code takes the mean."
    )
    step_weights: Literal["uniform", "balanced"] | tuple[StepWeight, ...] = Field(
        default="uniform",
        description="Weight of each step. balanced: every step's gradient at the network's output has equal size.",
    )
    inner_updates: Int = Field(
        default=1, ge=1, le=1000, description="Updates on one round's images. Above 1: ratio and clip."
    )
    ratio_clip: Float = Field(default=1e-4, gt=0, le=100, description="Importance ratios are clipped to 1 +- this.")
    kl_weight: Float = Field(
        default=0.0,
        ge=0,
        le=1e9,
        description="Weight of the KL of every step from the untrained model, which is added to the loss. DPOK: 0.01.",
    )

    @property
    def needs_base(self) -> bool:
        """Whether the model before training is asked for its predictions."""
        return self.kl_weight > 0

    @property
    def states_are_fp32(self) -> bool:
        """Whether a half-precision policy's are: later updates need their last digits, the first one does not."""
        return self.inner_updates > 1

    @property
    def one_number_an_image(self) -> bool:
        """Whether its gradient is the images' own gradients, each times one number: `memory.one_pass` needs that."""
        return self.baseline == "none" and self.kl_weight == 0

    def replays(self, *, one_pass: bool) -> bool:
        """Whether an update goes over the stored trajectory."""
        return self.inner_updates > one_pass

    def steps_taking_part(self, chain: Chain) -> int:
        """Those with a density and a weight, inside an adapter's window."""
        (first, end), weights = chain.window or (0, chain.steps), self.step_weights
        return sum(isinstance(weights, str) or weights[step] > 0 for step in range(chain.noisy) if first <= step < end)

    def workload(self, chain: Chain, knobs: Knobs) -> Workload:
        """Of a round on this chain."""
        taking_part = self.steps_taking_part(chain)
        baseline = taking_part if self.baseline == "predicted_image" else 0
        return Workload(
            by_micro_batch=False,
            rolled=chain.steps + baseline,
            pulled=self.inner_updates * taking_part,
            again=0,
            gradient_steps=taking_part,
            states=chain.steps + 1,
            scorings=1 + baseline,
            may_take_one_pass=self.one_number_an_image,
            in_one_pass=knobs.one_pass,
            replays=self.replays(one_pass=knobs.one_pass),
        )

    def shortened(self, steps: int) -> Self:
        """On a chain of so few steps: one update, and a predicted baseline is a rollout's step and a scoring."""
        weights = {} if isinstance(self.step_weights, str) else {"step_weights": "uniform"}
        baseline = "none" if self.baseline == "predicted_image" else self.baseline
        return self.model_copy(update={"inner_updates": 1, "baseline": baseline, **weights})

    def own_bytes(self, shape: ImageShape, steps: int) -> int:
        """A value function with its optimizer, on every GPU."""
        return LEARNT_BYTES * self.value.elements(shape, steps) if self.baseline == "value" else 0

    @model_validator(mode="after")
    def _memory_has_no_others(self) -> Self:
        if self.per_prompt and self.prompt_memory and self.advantage == "leave_one_out":
            raise ValueError("advantage: leave_one_out with per_prompt goes with prompt_memory: 0")
        return self

    @model_validator(mode="after")
    def _baseline_over_all_images(self) -> Self:
        if self.baseline == "predicted_image" and self.per_prompt:
            raise ValueError("baseline: predicted_image compares all images of a round; it goes with per_prompt: false")
        return self

    @field_validator("step_weights")
    @classmethod
    def _not_all_zero(cls, weights: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(weights, str) and (not weights or max(weights) == 0):
            raise ValueError("step_weights must be numbers >= 0, one a step, not all zero")
        return weights
