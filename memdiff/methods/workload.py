"""What a round of a method comes to, for the planner: each method's section answers for itself. No torch."""

from dataclasses import dataclass

ImageShape = tuple[int, int, int]  # C H W of x_t


@dataclass(frozen=True)
class Chain:
    """The denoising steps of an image."""

    steps: int
    noisy: int  # the first of them, which add noise: those have a density
    window: tuple[int, int] | None = None  # steps in which an adapter acts; None: all
    images: int = 1  # of a round, over all ranks


@dataclass(frozen=True)
class Workload:
    """Of each image, expected over the method's draws; a step is one call of the network for it.

    Two schemes. Methods that differentiate the reward go through rollout, reward and gradient one micro-batch after the
    other. Policy gradients roll out and score all images first, and then go over (image, step) pairs.
    """

    by_micro_batch: bool  # the first scheme
    rolled: float  # steps forward, besides the forward of what is pulled
    pulled: float  # steps pulled back, in all updates
    again: float  # of them, those whose forward is made again for it
    gradient_steps: int  # of the chain, at which an update takes a gradient
    states: int  # x_t stored for the way back, where an update goes over them
    scorings: int = 1  # times that an image is decoded and scored
    most_kept: int = 0  # steps whose graph can be kept from the rollout
    kept: int = 0  # of them, steps whose graph is
    may_take_one_pass: bool = False  # whether steps can be pulled in the rollout
    in_one_pass: bool = False  # whether they are: that saves their forward in it, and gradients wait for rewards
    replays: bool = True  # whether an update goes over stored states
    minibatch_pairs: float | None = None  # steps of an image in one update, on average; None: all that take a gradient

    @property
    def pairs(self) -> float:
        """Steps of an image that share micro-batches."""
        if self.minibatch_pairs is not None:
            return self.minibatch_pairs
        return 1 if self.by_micro_batch or self.in_one_pass else self.gradient_steps
