"""The recipe: one YAML file, the sum of the rooms' own sections. No torch."""

from typing import Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from memdiff.engine.config import OptimizerConfig
from memdiff.errors import ConfigError
from memdiff.memory.knobs import MemoryConfig
from memdiff.methods.config import MethodConfig, ReinforceConfig, SftPgConfig
from memdiff.methods.reward_gradient_config import DirectConfig
from memdiff.methods.sft_pg_config import SFT_PG
from memdiff.methods.workload import Chain
from memdiff.models.config import AdapterConfig, ModelConfig, takes_prompts
from memdiff.models.sampler_config import SamplerConfig, noisy_steps
from memdiff.recipe.prompts import PromptsConfig
from memdiff.rewards.config import RewardPart, part_name, way_to_a_gradient
from memdiff.rewards.guards_config import GuardsConfig
from memdiff.rewards.part_config import TextPart
from memdiff.runtime.section import Float, Int, Section

LoggerName: TypeAlias = Literal["tensorboard", "wandb", "trackio"]


class EvaluateConfig(Section):
    """Images from fixed noise, made with the current weights every few rounds."""

    every: Int = Field(
        default=10, ge=0, le=10**9, description="Rounds between two evaluations; also before and after. 0: never."
    )
    images: Int = Field(default=64, ge=1, le=10**6, description="Images of one evaluation, the same noise every time.")
    rewards: tuple[RewardPart, ...] = Field(default=(), description="Held-out parts: measured, never trained on.")


class RunConfig(Section):
    """How long, how much, from which seed."""

    rounds: Int = Field(
        default=100, ge=1, le=10**9, description="Rounds in all; a finished run goes on where it is raised."
    )
    images_per_round: Int = Field(default=200, ge=1, le=10**6, description="Over all ranks.")
    seed: Int = Field(default=0, ge=0, lt=2**63, description="Decides all noise, prompts and random draws of the run.")
    save_every: Int = Field(
        default=10, ge=1, le=10**9, description="Rounds between two checkpoints; one more at the end."
    )
    keep_checkpoints: Int = Field(default=2, ge=1, le=10**9, description="Newest checkpoints that stay on disk.")
    watchdog_seconds: Float = Field(
        default=900,
        ge=0,
        le=1e6,
        description="A run ends where a rank made no step, piece, chunk of rewards or save for so long. 0: never.",
    )
    max_hours: Float | None = Field(
        default=None,
        gt=0,
        le=1e5,
        description="The run saves and ends (exit code 75) within so many hours of its command, at the end of a round; "
        "the same command goes on. Sessions of Kaggle and Colab are cut after 9 to 12.",
    )
    log: tuple[LoggerName, ...] = Field(
        default=("tensorboard",),
        description="Where curves, grids and the recipe go beside the run folder's own files: tensorboard writes files "
        "there, wandb and trackio are packages of their own. One that fails is off, and the run goes on.",
    )


class Recipe(Section):
    """Everything that decides a run."""

    model: ModelConfig
    adapter: AdapterConfig | None = Field(default=None, description="None: all of the denoiser is trained.")
    trained_modules: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Parts of the UNet that are trained, such as mid_block or up_blocks.0, the rest frozen. None: all "
        "of it. Without an adapter, whose targets say so.",
    )
    sampler: SamplerConfig = SamplerConfig()
    prompts: PromptsConfig | None = Field(default=None, description="Text models only: what images are made from.")
    method: MethodConfig
    reward: tuple[RewardPart, ...] = Field(description="What is raised. SFT-PG takes none.")
    optimizer: OptimizerConfig = OptimizerConfig()
    memory: MemoryConfig = MemoryConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    guards: GuardsConfig = GuardsConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="before")
    @classmethod
    def _without_reward(cls, raw: Any) -> Any:
        """A method that takes no reward needs no key that says so."""
        method = raw.get("method") if isinstance(raw, dict) else None
        kind = method.get("kind") if isinstance(method, dict) else None
        return {"reward": (), **raw} if kind == SFT_PG else raw

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [part_name(part) for part in (*self.reward, *self.evaluate.rewards)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two reward parts are named {twice[0]}; give each a `name` of its own")
        for part in (*self.reward, *self.evaluate.rewards):
            if isinstance(part, TextPart) and part.prompt is None and self.prompts is None:
                raise ValueError(f"reward {part_name(part)} needs a `prompt`; model.kind {self.model.kind} has none")
        self._check_reward()
        self._check_non_finite()
        match self.method:
            case ReinforceConfig():
                self._check_policy_gradient(self.method)
            case SftPgConfig():
                self._check_shortcut(self.method)
            case _:
                self._check_reward_gradient(self.method)
        if self.adapter is not None and self.trained_modules is not None:
            raise ValueError("trained_modules is for training without an adapter; adapter.targets chooses its layers")
        window = self.adapter.steps if self.adapter else None
        if window is not None and window[1] > self.sampler.steps:
            raise ValueError(
                f"adapter.steps must end at sampler.steps, {self.sampler.steps}, or before, got {window[1]}"
            )
        self._check_prompts()
        self._check_kept_steps()
        return self

    def evaluated_after(self, round_number: int) -> bool:
        """Whether an evaluation follows a round; the one before the first round is apart."""
        every = self.evaluate.every
        return every > 0 and (round_number % every == 0 or round_number == self.run.rounds)

    def _check_reward(self) -> None:
        """Raises ValueError where the method and the reward don't go together."""
        kind = self.method.kind
        if self.method.takes_reward and not self.reward:
            raise ValueError(f"reward: method.kind {kind} needs at least 1 part, got none")
        if not self.method.takes_reward and self.reward:
            raise ValueError(
                f"reward: method.kind {kind} takes none, since its critic is the cost; what is to be measured stands "
                "under evaluate.rewards"
            )

    def _check_density(self) -> None:
        """Raises ValueError where no step of the chain has a density."""
        if self.sampler.eta == 0 and self.sampler.sigma_floor == 0:
            raise ValueError(
                f"sampler.eta 0 has no density, so method {self.method.kind} has no gradient; set sampler.eta to 1"
            )

    def _check_shortcut(self, method: SftPgConfig) -> None:
        """Raises ValueError where model, chain or round don't fit shortcut fine-tuning."""
        self._check_density()
        if takes_prompts(self.model):
            raise ValueError(
                f"method.kind sft_pg compares images with real ones and takes models of images without prompts, such "
                f"as model.kind ddpm; got {self.model.kind}"
            )
        if self.memory.one_pass is True:
            raise ValueError(f"memory.one_pass is for method.kind: reinforce, got {method.kind}")
        sampler, window = self.sampler, self.adapter.steps if self.adapter else None
        misfit = method.misfit(Chain(sampler.steps, noisy_steps(sampler), window, self.run.images_per_round))
        if misfit is not None:
            raise ValueError(misfit)

    def _check_policy_gradient(self, method: ReinforceConfig) -> None:
        """Raises ValueError where the chain has no density, or steps and their weights differ in number."""
        self._check_density()
        weights = method.step_weights
        if not isinstance(weights, str) and len(weights) != self.sampler.steps:
            raise ValueError(
                f"method.step_weights needs one number a step, {self.sampler.steps} of them, got {len(weights)}"
            )
        if self.memory.one_pass is True and not method.one_number_an_image:
            raise ValueError("memory.one_pass goes with method.baseline: none and method.kl_weight: 0")

    def _check_reward_gradient(self, method: DirectConfig) -> None:
        """Raises ValueError where no gradient gets from the reward to what is trained."""
        if self.memory.one_pass is True:
            raise ValueError(f"memory.one_pass is for method.kind: reinforce, got {method.kind}")
        for part in self.reward:
            change = way_to_a_gradient(part)
            if change is not None:
                raise ValueError(
                    f"reward {part_name(part)} has no gradient, which method.kind {method.kind} needs; {change}, or "
                    "use method.kind: reinforce, which takes every reward"
                )
        misfit = method.misfit(self.sampler.steps)
        if misfit is not None:
            raise ValueError(misfit)
        window = self.adapter.steps if self.adapter else None
        steps = method.differentiated(self.sampler.steps)
        inside = [step for step in steps if window is None or window[0] <= step < window[1]]
        if not inside or (method.kind == "refl" and len(inside) < len(steps)):
            raise ValueError(
                f"adapter.steps {list(window or ())} leaves differentiated steps {steps.start}..{steps.stop - 1} of "
                f"method.kind {method.kind} without anything to train; widen one or the other"
            )

    def _check_kept_steps(self) -> None:
        """Raises ValueError where more graphs are to be kept than the method makes."""
        kept, method = self.memory.kept_steps, self.method
        if kept == "auto" or kept == 0:
            return
        if isinstance(method, ReinforceConfig | SftPgConfig):
            raise ValueError(
                f"memory.kept_steps is for methods that differentiate the reward; method.kind {method.kind} goes with "
                f"0 or auto, got {kept}"
            )
        most = method.most_kept(self.sampler.steps)
        if kept > most:
            raise ValueError(
                f"memory.kept_steps must be 0..{most}, the steps that method.kind {method.kind} differentiates, or "
                f"auto, got {kept}"
            )

    def _check_prompts(self) -> None:
        """Raises ValueError where the model and what is said of prompts don't go together."""
        kind = self.model.kind
        if not takes_prompts(self.model):
            if self.prompts is not None:
                raise ValueError(f"prompts need a text-to-image model; model.kind {kind} takes none")
            if self.sampler.guidance is not None or self.sampler.negative_prompt is not None:
                name = "guidance" if self.sampler.guidance is not None else "negative_prompt"
                raise ValueError(f"sampler.{name} needs a text-to-image model; model.kind {kind} has no prompt")
            if isinstance(self.method, ReinforceConfig) and self.method.per_prompt:
                raise ValueError(f"method.per_prompt needs prompts; model.kind {kind} has none")
            return
        if self.prompts is None:
            raise ValueError(
                f"model.kind {kind} makes images from texts; give prompts: a text, a list or {{file: ...}}"
            )
        if self.run.images_per_round % self.prompts.images_per_prompt:
            raise ValueError(
                f"run.images_per_round must be a multiple of prompts.images_per_prompt, "
                f"{self.prompts.images_per_prompt}, got {self.run.images_per_round}"
            )

    def _check_non_finite(self) -> None:
        """What is left out, or clamped, has no gradient of its own, and no baseline to be compared with."""
        for part in self.reward:
            if part.non_finite == "error":
                continue
            if not isinstance(self.method, ReinforceConfig):
                raise ValueError(
                    f"reward {part_name(part)}: non_finite: {part.non_finite} goes with method.kind: reinforce: "
                    "a score that is not finite has no gradient"
                )
            if part.non_finite == "drop" and self.method.baseline != "none":
                raise ValueError(
                    f"reward {part_name(part)}: non_finite: drop goes with method.baseline: none; "
                    "use clamp, or no baseline"
                )

    def check_world_size(self, world_size: int) -> None:
        """Raises ConfigError where a rank would have no image."""
        images = self.run.images_per_round
        if world_size > images:
            raise ConfigError(
                f"run.images_per_round must be at least the number of ranks, {world_size}, got {images}; "
                f"use --gpus {images} or fewer"
            )
