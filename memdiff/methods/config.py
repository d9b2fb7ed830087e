"""Recipe section `method`. No torch."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from memdiff.memory.knobs import Knobs
from memdiff.methods.learners_config import LEARNT_BYTES, ValueBaselineConfig
from memdiff.methods.sft_pg_config import SftPgConfig
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


LastSteps = Annotated[Int, Field(ge=1, le=1000)] | Literal["all"]


class DirectConfig(Section):
    """What the methods that differentiate the reward itself have in common."""

    kind: str
    target: Float | None = Field(
        default=None,
        ge=-1e9,
        le=1e9,
        description="Loss max(target - r, 0) instead of -r: images whose reward r has reached it are left alone.",
    )
    scale: Float = Field(default=1.0, ge=1e-9, le=1e9, description="Of the loss. AdamW forgets it, clip_norm does not.")
    costate_clip: Float | None = Field(
        default=None, gt=0, le=1e9, description="Largest norm of d loss / d x of one image at any step. None: exact."
    )
    base_distance: Float = Field(
        default=0.0,
        ge=0,
        le=1e9,
        description="Weight of the mean square distance to the untrained model's predictions, at differentiated steps.",
    )

    states_are_fp32: ClassVar[bool] = True
    takes_reward: ClassVar[bool] = True

    @property
    def needs_base(self) -> bool:
        """Whether the model before training is asked for its predictions."""
        return self.base_distance > 0

    def own_bytes(self, shape: ImageShape, steps: int) -> int:
        """None: the reward itself is differentiated."""
        return 0

    @abstractmethod
    def workload(self, chain: Chain, knobs: Knobs) -> Workload:
        """Of a round on this chain."""
        ...

    def _workload(
        self,
        rolled: float,
        depths: Sequence[int],
        most: int,
        knobs: Knobs,
        *,
        samples: int = 1,
        states: int | None = None,
    ) -> Workload:
        """Of a sweep whose depth is one of `depths`, at most `most`, made for `samples` noisings of an image."""
        pulled = samples * (sum(depths) / len(depths))
        return Workload(
            by_micro_batch=True,
            rolled=rolled,
            pulled=pulled,
            again=samples * (sum(max(0, depth - knobs.kept_steps) for depth in depths) / len(depths)),
            gradient_steps=max(1, round(pulled)),
            states=max(1, most) if states is None else states,
            most_kept=most,
            kept=min(knobs.kept_steps, most),
        )

    @abstractmethod
    def shortened(self, steps: int) -> Self:
        """On a chain of so few steps, every one of which takes part if more than one of a real chain's does."""
        ...

    @abstractmethod
    def differentiated(self, steps: int) -> range:
        """The steps of a chain that a gradient may go through."""
        ...

    def most_kept(self, steps: int) -> int:
        """Steps of a chain whose graph a gradient goes through at once."""
        return len(self.differentiated(steps))

    @abstractmethod
    def misfit(self, steps: int) -> str | None:
        """What does not fit a chain of so many steps, in one line; None where all does."""
        ...


class LastStepsConfig(DirectConfig):
    """Those of them that differentiate the last steps of the chain."""

    last_steps: LastSteps = Field(default="all", description="K, or the largest K. all: the whole chain.")

    def steps_of(self, steps: int) -> int:
        """K, or the largest K, of a chain of so many steps."""
        return steps if self.last_steps == "all" else self.last_steps

    def differentiated(self, steps: int) -> range:
        """The last K steps of the chain, where K is `last_steps`."""
        return range(steps - self.steps_of(steps), steps)

    def misfit(self, steps: int) -> str | None:
        """K is at most the chain's length."""
        if self.last_steps == "all" or self.last_steps <= steps:
            return None
        return f"method.last_steps must be 1..{steps} (sampler.steps) or all, got {self.last_steps}"


class DraftConfig(LastStepsConfig):
    """The reward's gradient through the last steps: DRaFT, DRaFT-K, DRaFT-LV (Clark et al. 2023)."""

    kind: Literal["draft"]  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so narrower is safe
    last_steps: LastSteps = Field(default=1, description="K, the differentiated steps. all: the whole chain.")
    noise_samples: Int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="DRaFT-LV: average over so many new noisings of the finished image. With last_steps 1.",
    )

    def workload(self, chain: Chain, knobs: Knobs) -> Workload:
        """DRaFT-LV takes its step once more for each noising of an image."""
        samples, most = self.noise_samples or 1, self.steps_of(chain.steps)
        rolled = chain.steps + (samples if samples > 1 else 0)
        return self._workload(rolled, [most], most, knobs, samples=samples)

    def shortened(self, steps: int) -> Self:
        """All steps, or one."""
        return self.model_copy(update={"last_steps": 1 if self.last_steps == 1 else "all"})

    @model_validator(mode="after")
    def _one_step(self) -> Self:
        if self.noise_samples is not None and self.last_steps != 1:
            raise ValueError(f"noise_samples differentiates one step; set last_steps to 1, got {self.last_steps}")
        return self


class AlignPropConfig(LastStepsConfig):
    """Backpropagation through a random number of last steps (Prabhudesai et al. 2023)."""

    kind: Literal["alignprop"]  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so narrower is safe
    truncation: Literal["random", "fixed"] = Field(
        default="random", description="random: K uniform over 1..last_steps, drawn for each image. fixed: last_steps."
    )
    one_draw_per_batch: bool = Field(default=False, description="All images of a round share one K.")

    def workload(self, chain: Chain, knobs: Knobs) -> Workload:
        """Expected over its draws of K."""
        most = self.steps_of(chain.steps)
        depths = range(1, most + 1) if self.truncation == "random" else [most]
        return self._workload(chain.steps, depths, most, knobs)

    def shortened(self, steps: int) -> Self:
        """All steps, or one, without a draw."""
        last = 1 if self.last_steps == 1 else "all"
        return self.model_copy(update={"truncation": "fixed", "one_draw_per_batch": False, "last_steps": last})

    @model_validator(mode="after")
    def _draws(self) -> Self:
        if self.one_draw_per_batch and self.truncation == "fixed":
            raise ValueError("one_draw_per_batch goes with truncation: random")
        return self


class ReflConfig(DirectConfig):
    """One late step, which predicts the image at once (ReFL: Xu et al. 2023)."""

    kind: Literal["refl"]  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so narrower is safe
    first_step: Int = Field(
        default=30, ge=0, le=999, description="Of the range that the step is drawn from; 0: the noisiest."
    )
    last_step: Int = Field(default=39, ge=0, le=999, description="The last of that range, included.")
    scale: Float = Field(default=1e-3, ge=1e-9, le=1e9, description="Of the loss.")
    target: Float | None = Field(default=2.0, ge=-1e9, le=1e9, description="Loss max(target - r, 0). None: -r.")

    def workload(self, chain: Chain, knobs: Knobs) -> Workload:
        """Expected over its draws of the step, which is the one that is pulled, from the state that is at hand."""
        return self._workload((self.first_step + self.last_step) / 2 + 1, [1], 1, knobs, states=0)

    def shortened(self, steps: int) -> Self:
        """The differentiated step is not drawn: it is the last of the short chain."""
        return self.model_copy(update={"first_step": steps - 1, "last_step": steps - 1})

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.first_step > self.last_step:
            raise ValueError(f"first_step must be at most last_step, got {self.first_step} and {self.last_step}")
        return self

    def differentiated(self, steps: int) -> range:
        """Those it is drawn from."""
        return range(self.first_step, self.last_step + 1)

    def most_kept(self, steps: int) -> int:
        """The one that was drawn."""
        return 1

    def misfit(self, steps: int) -> str | None:
        """Steps are counted from 0."""
        if self.last_step < steps:
            return None
        return f"method.last_step must be 0..{steps - 1} in a chain of sampler.steps {steps}, got {self.last_step}"


MethodConfig = Annotated[
    ReinforceConfig | DraftConfig | AlignPropConfig | ReflConfig | SftPgConfig, Field(discriminator="kind")
]
