"""Recipe section `method` of SFT-PG, and where its real images come from. No torch."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from memdiff.memory.knobs import Knobs
from memdiff.methods.learners_config import LEARNT_BYTES, CriticConfig, ValueConfig
from memdiff.methods.workload import Chain, ImageShape, Workload
from memdiff.runtime.section import Float, Int, Section

SFT_PG = "sft_pg"  # the method's kind


class RealDigits(Section):
    """scikit-learn's handwritten digits as the embedded model reads them, 1,437 of 16 x 16 pixels."""

    kind: Literal["digits"]


class RealFolder(Section):
    """The images of a folder, each of the model's own size and mode."""

    kind: Literal["folder"]
    path: str = Field(min_length=1, description="From the working directory, or beside the recipe.")

    @field_validator("path")
    @classmethod
    def _there(cls, path: str, info: ValidationInfo) -> str:
        folder = Path(path).expanduser()
        beside = info.context.get("folder") if isinstance(info.context, dict) else None
        for candidate in (folder, *((Path(beside) / folder,) if beside else ())):
            if candidate.is_dir():
                return str(candidate.resolve())
        raise ValueError(f"no such folder: {path}")


class RealDataset(Section):
    """A split of a dataset that Hugging Face's `datasets` reads, if that is installed."""

    kind: Literal["dataset"]
    name: str = Field(min_length=1, description="A hub id such as uoft-cs/cifar10, or a folder that `datasets` reads.")
    split: str = Field(default="train", min_length=1, description="Of the data set.")
    column: str = Field(default="img", min_length=1, description="The one that holds the images.")
    revision: str | None = Field(default=None, description="Branch, tag or commit. None: the default branch.")


RealImagesConfig = Annotated[RealDigits | RealFolder | RealDataset, Field(discriminator="kind")]


class SftPgConfig(Section):
    """Shortcut fine-tuning with policy gradient (Fan and Lee 2023): fewer steps, against real images."""

    states_are_fp32: ClassVar[bool] = True  # the last step's std is below what fp16 tells apart
    takes_reward: ClassVar[bool] = False  # its critic is the cost
    needs_base: ClassVar[bool] = False

    kind: Literal["sft_pg"]
    real: RealImagesConfig = Field(description="The images that the model's are to be like.")
    critic_steps: Int = Field(
        default=5, ge=1, le=10**6, description="Equal shares of a round's images, a critic step on each."
    )
    critic_passes: Int = Field(
        default=1, ge=1, le=10**6, description="Times that the critic goes over them, with other real images each time."
    )
    generator_updates: Int = Field(default=10, ge=1, le=10**6, description="Updates of the model a round, at most.")
    minibatch: Int = Field(
        default=128, ge=1, le=10**6, description="(image, step) pairs of one such update, over all ranks."
    )
    warmup_rounds: Int = Field(
        default=0, ge=0, le=10**6, description="First rounds that train critic and value function alone."
    )
    critic: CriticConfig = CriticConfig()
    value: ValueConfig = ValueConfig()
    critic_regularisation: Literal["baseline", "none"] = Field(
        default="baseline",
        description="baseline: the value function's loss pulls the critic too, towards costs that can be foretold. "
        "none: it doesn't.",
    )
    max_kl: Float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="Largest mean KL in nats, over a step's C*H*W, from the model that made the round's images. Beyond "
        "it the round's remaining updates are skipped and the learning rate is halved for good. None: not measured.",
    )
    log_prob_reduction: Literal["mean", "sum"] = Field(
        default="mean", description="Over the C*H*W dimensions. sum is the density; public code takes the mean."
    )
    step_weights: Literal["uniform", "balanced"] = Field(
        default="uniform",
        description="Weight of each step. balanced: every step's gradient at the network's output has equal size.",
    )

    def misfit(self, chain: Chain) -> str | None:
        """What does not fit a round of such chains, in one line; None where all does."""
        wanted = self.generator_updates * self.minibatch
        pairs = self._steps(chain) * chain.images
        if self.critic_steps > chain.images:
            return f"method.critic_steps must be at most run.images_per_round, {chain.images}, got {self.critic_steps}"
        if wanted > pairs:
            return (
                f"method.generator_updates x method.minibatch must be at most the {pairs} pairs of a round "
                f"({chain.images} images, {self._steps(chain)} steps that can be trained), got {wanted}"
            )
        return None

    def _steps(self, chain: Chain) -> int:
        """Those with a density, inside an adapter's window."""
        first, end = chain.window or (0, chain.steps)
        return len(range(max(0, first), min(end, chain.noisy)))

    def workload(self, chain: Chain, knobs: Knobs) -> Workload:
        """Of a round on this chain. The divergence is measured before every update but the first."""
        pairs = self._steps(chain) * chain.images
        size = min(self.minibatch, pairs)
        measured = 0 if self.max_kl is None else (self.generator_updates - 1) * size / chain.images
        return Workload(
            by_micro_batch=False,
            rolled=chain.steps + measured,
            pulled=self.generator_updates * size / chain.images,
            again=0,
            gradient_steps=self._steps(chain),
            states=chain.steps + 1,
            minibatch_pairs=size / chain.images,
        )

    def shortened(self, steps: int) -> Self:
        """On a chain of so few steps: one update, on all pairs."""
        return self.model_copy(update={"critic_steps": 1, "generator_updates": 1, "minibatch": 1 << 40})

    def own_bytes(self, shape: ImageShape, steps: int) -> int:
        """Critic and value function with their optimizers, on every GPU."""
        return LEARNT_BYTES * (self.critic.elements(shape) + self.value.elements(shape, steps))

    @model_validator(mode="after")
    def _widths_are_counts(self) -> Self:
        if min(self.critic.widths) < 1:
            raise ValueError(f"critic.widths must be at least 1, got {list(self.critic.widths)}")
        return self
