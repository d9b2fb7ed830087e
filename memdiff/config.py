"""The recipe: one YAML file, the sum of the rooms' own sections. No torch."""

from typing import Self

from pydantic import Field, model_validator

from memdiff.engine.config import OptimizerConfig
from memdiff.errors import ConfigError
from memdiff.memory.config import MemoryConfig
from memdiff.models.config import AdapterConfig, ModelConfig, SamplerConfig
from memdiff.objectives.config import MethodConfig
from memdiff.rewards.config import RewardPart, part_name
from memdiff.rewards.guards_config import GuardsConfig
from memdiff.rewards.part_config import TextPart
from memdiff.section import Int, Section


class EvaluateConfig(Section):
    """Images from fixed noise, made with the current weights every few rounds."""

    every: Int = Field(default=10, ge=0, description="Rounds between two evaluations; also before and after. 0: never.")
    images: Int = Field(default=64, ge=1, description="Images of one evaluation, the same noise every time.")
    rewards: tuple[RewardPart, ...] = Field(default=(), description="Held-out parts: measured, never trained on.")


class RunConfig(Section):
    """How long, how much, from which seed."""

    rounds: Int = Field(default=100, ge=1)
    images_per_round: Int = Field(default=200, ge=1, description="Over all ranks.")
    seed: Int = Field(default=0, ge=0, lt=2**63)
    save_every: Int = Field(default=10, ge=1, description="Rounds between two checkpoints; one more at the end.")
    keep_checkpoints: Int = Field(default=2, ge=1, description="Newest checkpoints that stay on disk.")


class Recipe(Section):
    """Everything that decides a run."""

    model: ModelConfig
    adapter: AdapterConfig | None = Field(default=None, description="None: all of the denoiser is trained.")
    sampler: SamplerConfig = SamplerConfig()
    method: MethodConfig
    reward: tuple[RewardPart, ...] = Field(min_length=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    memory: MemoryConfig = MemoryConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    guards: GuardsConfig = GuardsConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [part_name(part) for part in (*self.reward, *self.evaluate.rewards)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two reward parts are named {twice[0]}; give each a `name` of its own")
        for part in (*self.reward, *self.evaluate.rewards):
            if isinstance(part, TextPart) and part.prompt is None:
                raise ValueError(f"reward {part_name(part)} needs a `prompt`; model.kind {self.model.kind} has none")
        if self.method.kind == "reinforce" and self.sampler.eta == 0 and self.sampler.sigma_floor == 0:
            raise ValueError("sampler.eta 0 has no density, so method reinforce has no gradient; set sampler.eta to 1")
        weights = self.method.step_weights
        if not isinstance(weights, str) and len(weights) != self.sampler.steps:
            raise ValueError(
                f"method.step_weights needs one number a step, {self.sampler.steps} of them, got {len(weights)}"
            )
        if self.sampler.guidance is not None:
            raise ValueError(
                f"sampler.guidance needs a text-to-image model; model.kind {self.model.kind} has no prompt"
            )
        if self.method.per_prompt:
            raise ValueError(f"method.per_prompt needs prompts; model.kind {self.model.kind} has none")
        return self

    def check_world_size(self, world_size: int) -> None:
        """Raises ConfigError where a rank would have no image."""
        images = self.run.images_per_round
        if world_size > images:
            raise ConfigError(
                f"run.images_per_round must be at least the number of ranks, {world_size}, got {images}; "
                f"use --gpus {images} or fewer"
            )
