"""What a recipe's round comes to on one rank, and at which sizes it is measured."""

from dataclasses import dataclass, field, replace

from memdiff.memory.knobs import Knobs, resolved
from memdiff.methods.config import MethodConfig
from memdiff.methods.workload import Chain, Workload
from memdiff.models.config import Precision, needs_guidance
from memdiff.models.sampler_config import noisy_steps
from memdiff.planner.measured import Sizes
from memdiff.recipe.recipe import Recipe


@dataclass(frozen=True)
class RankRound:
    """What a round of one rank comes to, whatever the knobs."""

    method: MethodConfig
    chain: Chain
    images: int  # of this rank
    state_bytes: int  # of one element of a stored state
    chunk: int  # images that rewards score at once
    evaluated: int  # images of this rank in one evaluation; 0: there is none
    separable: bool  # an adapter is trained: the images of one piece can have gradients of their own
    _works: dict[tuple[bool, int], Workload] = field(default_factory=dict, init=False, repr=False, compare=False)

    def on(self, sizes: Sizes) -> "RankRound":
        """With what the model's own schedule says of the last step, once it is measured.

        Stable Diffusion's ends at the noise of its first timestep, so that its last step adds noise as the others do.
        """
        noisy = self.chain.steps if self.chain.noisy and sizes.noisy_to_the_end else self.chain.noisy
        return self if noisy == self.chain.noisy else replace(self, chain=replace(self.chain, noisy=noisy))

    def workload(self, knobs: Knobs) -> Workload:
        """As the method's section has it, which of the knobs asks for these two."""
        key = knobs.one_pass, knobs.kept_steps
        if key not in self._works:
            self._works[key] = self.method.workload(self.chain, knobs)
        return self._works[key]

    def rows(self, knobs: Knobs) -> int:
        """Rows of a piece: the micro-batch, or 1 in one pass that cannot separate the images' gradients."""
        return knobs.micro_batch if self.separable or not self.workload(knobs).in_one_pass else 1

    def waiting(self, knobs: Knobs) -> int:
        """Images whose gradients wait for their rewards, those that only fill the last piece up among them."""
        rows = self.rows(knobs)
        return -(-self.images // rows) * rows if self.workload(knobs).in_one_pass else 0


def rank_round_of(recipe: Recipe, *, ranks: int, precision: str) -> RankRound:
    """Of the rank with the most images. Raises ConfigError where a rank would have none."""
    recipe.check_world_size(ranks)
    return RankRound(
        method=recipe.method,
        chain=Chain(
            recipe.sampler.steps,
            noisy_steps(recipe.sampler),
            recipe.adapter.steps if recipe.adapter else None,
            recipe.run.images_per_round,
        ),
        images=-(-recipe.run.images_per_round // ranks),
        state_bytes=4 if precision == "fp32" or recipe.method.states_are_fp32 else 2,
        chunk=max((part.chunk for part in recipe.reward), default=1),
        evaluated=-(-recipe.evaluate.images // ranks) if recipe.evaluate.every else 0,
        separable=recipe.adapter is not None,
    )


def planned_precision(precision: Precision) -> str:
    """auto is fp16, as on every CUDA device."""
    return "fp16" if precision == "auto" else precision


def sizes_to_measure(recipe: Recipe, rank_round: RankRound) -> tuple[int, ...]:
    """Images of the short rounds. Several where a piece's bytes are not proportional to its rows.

    Full fine-tuning makes a gradient as large as the weights, whatever the rows: its peak bends, and is measured at
    three sizes. A policy gradient scores all images at once. One row by itself is left out where more can be had: some
    of its transposes need no copy, so that it takes less.
    """
    rows_each = 2 if needs_guidance(recipe.sampler.guidance) else 1
    by_micro_batch = rank_round.workload(resolved(recipe.memory)).by_micro_batch
    if rank_round.images == 1 or (by_micro_batch and recipe.adapter is not None and rows_each > 1):
        return (1,)
    least = 2 // rows_each
    return (least, 8) if recipe.adapter is not None else (least, 8, 16)
