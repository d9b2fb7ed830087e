"""What a recipe's round comes to on one rank, and at which sizes it is measured."""

from dataclasses import dataclass

from memdiff.config import Recipe
from memdiff.memory.knobs import Knobs
from memdiff.models.guidance import needs_guidance
from memdiff.objectives.config import AlignPropConfig, DraftConfig, MethodConfig, ReflConfig, ReinforceConfig


@dataclass(frozen=True)
class Job:
    """What a round of one rank comes to."""

    method: MethodConfig
    images: int  # of this rank
    steps: int  # K
    weighted_steps: int  # of them, that REINFORCE takes a gradient at
    state_bytes: int  # of one element of a stored state
    chunk: int  # images that rewards score at once
    evaluated: int  # images of this rank in one evaluation; 0: there is none
    separable: bool  # an adapter is trained: the images of one piece can have gradients of their own

    @property
    def direct(self) -> bool:
        """Whether the reward itself is differentiated."""
        return not isinstance(self.method, ReinforceConfig)

    @property
    def samples(self) -> int:
        """Times that the last step is taken for its gradient: DRaFT-LV's noisings, else 1."""
        return (self.method.noise_samples or 1) if isinstance(self.method, DraftConfig) else 1

    @property
    def rolled(self) -> float:
        """Steps taken forward an image without a graph of its own, expected over the method's draws."""
        if isinstance(self.method, ReflConfig):
            return (self.method.first_step + self.method.last_step) / 2 + 1
        return self.steps + self.baseline_steps + (self.samples if self.samples > 1 else 0)

    @property
    def may_take_one_pass(self) -> bool:
        """Whether the images' gradients can be taken while they are sampled."""
        return isinstance(self.method, ReinforceConfig) and self.method.one_number_an_image

    def rows(self, knobs: Knobs) -> int:
        """Of a piece."""
        return knobs.micro_batch if self.separable or not knobs.one_pass else 1

    @property
    def baseline_steps(self) -> int:
        """Steps whose predicted image is scored for a baseline."""
        asked = isinstance(self.method, ReinforceConfig) and self.method.baseline != "none"
        return self.weighted_steps if asked else 0

    def pulled(self, kept: int) -> tuple[float, float]:
        """(steps pulled back an image, those of them whose forward runs again), expected over the method's draws."""
        if isinstance(self.method, ReinforceConfig):
            return float(self.method.inner_updates * self.weighted_steps), 0.0
        if isinstance(self.method, ReflConfig):
            return 1.0, 0.0 if kept else 1.0
        most = len(self.method.differentiated(self.steps))
        drawn = isinstance(self.method, AlignPropConfig) and self.method.truncation == "random"
        depths = range(1, most + 1) if drawn else [most]
        mean = sum(depths) / len(depths)
        again = sum(max(0, depth - kept) for depth in depths) / len(depths)
        return self.samples * mean, self.samples * again

    def replays(self, knobs: Knobs) -> bool:
        """Whether an update goes over stored states."""
        return not isinstance(self.method, ReinforceConfig) or self.method.replays(one_pass=knobs.one_pass)

    def eligibilities(self, knobs: Knobs) -> int:
        """Images whose gradients wait for their rewards, those that only fill the last piece up among them."""
        return -(-self.images // self.rows(knobs)) * self.rows(knobs) if knobs.one_pass else 0

    def most_kept(self) -> int:
        """The most steps whose graph it can use to keep."""
        if isinstance(self.method, ReinforceConfig):
            return 0
        return 1 if isinstance(self.method, ReflConfig) else len(self.method.differentiated(self.steps))

    def stored_states(self, rows: int) -> int:
        """x_t kept for the way back, over rows."""
        if isinstance(self.method, ReinforceConfig):
            return (self.steps + 1) * self.images
        return max(1, len(self.method.differentiated(self.steps))) * rows


def job_of(recipe: Recipe, *, ranks: int, precision: str) -> Job:
    """Of the rank with the most images. Raises ConfigError where a rank would have none."""
    recipe.check_world_size(ranks)
    half = precision != "fp32"
    return Job(
        method=recipe.method,
        images=-(-recipe.run.images_per_round // ranks),
        steps=recipe.sampler.steps,
        weighted_steps=_weighted_steps(recipe),
        state_bytes=2 if half and isinstance(recipe.method, ReinforceConfig) else 4,
        chunk=max(part.chunk for part in recipe.reward),
        evaluated=-(-recipe.evaluate.images // ranks) if recipe.evaluate.every else 0,
        separable=recipe.adapter is not None,
    )


def _weighted_steps(recipe: Recipe) -> int:
    sampler = recipe.sampler
    if sampler.eta == 0 and sampler.sigma_floor == 0:
        return 0
    # DDIM with eta above 0 adds noise in every step but the last, which needs a floor for it.
    noisy = max(1, sampler.steps if sampler.sigma_floor > 0 else sampler.steps - 1)
    given = recipe.method.step_weights if isinstance(recipe.method, ReinforceConfig) else "uniform"
    first, end = (recipe.adapter and recipe.adapter.steps) or (0, sampler.steps)
    return sum(isinstance(given, str) or given[step] > 0 for step in range(noisy) if first <= step < end)


def sizes_to_measure(recipe: Recipe, job: Job) -> tuple[int, ...]:
    """Images of the short rounds. Several where a piece's bytes are not proportional to its rows.

    Full fine-tuning makes a gradient as large as the weights, whatever the rows: its peak bends, and is measured at
    three sizes. REINFORCE scores all images at once. One row by itself is left out where more can be had: some of its
    transposes need no copy, so that it takes less.
    """
    rows_each = 2 if needs_guidance(recipe.sampler.guidance) else 1
    if job.images == 1 or (job.direct and recipe.adapter is not None and rows_each > 1):
        return (1,)
    least = 2 // rows_each
    return (least, 8) if recipe.adapter is not None else (least, 8, 16)
