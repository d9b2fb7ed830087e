"""Recipe section `method` of those that differentiate the reward itself: DRaFT, AlignProp, ReFL. No torch."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from memdiff.memory.knobs import Knobs
from memdiff.methods.workload import Chain, ImageShape, Workload
from memdiff.runtime.section import Float, Int, Section

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
