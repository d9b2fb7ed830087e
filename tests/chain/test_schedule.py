"""The chain and one DDIM step, held against diffusers' DDIMScheduler and against arithmetic.

Shapes: K chain steps as rows, C H W pixels.
"""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler
from torch.distributions import Independent, Normal

from memdiff.chain.ddim import log_prob, predict_x0_and_eps, step_mean, step_sigma
from memdiff.chain.schedule import (
    NoiseSchedule,
    Schedule,
    Spacing,
    chain_timesteps,
    ddim_sigma,
    make_schedule,
    mean_per_prediction,
    step_weights,
)
from memdiff.errors import ConfigError
from memdiff.models.scheduler import ddim_scheduler, noise_schedule

BETAS = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
}
SPACINGS: tuple[Spacing, ...] = ("leading", "linspace", "trailing")
SHAPE = (1, 4, 4)
PRECISE = 1e-6  # of the largest |element| of a step, at least 1: early steps divide by sqrt(ab), which may be 1e-2
# diffusers' own float32 is less exact where eps comes from a predicted x0 (up to 4.5e-6 from its float64, torch 2.13),
# and with squaredcos_cap_v2 it even gives NaN: at ab_t = 2e-9 its 1 - ab_s - sigma^2 may fall below 0.
PRECISE_X0 = 1e-5


def celebahq(**changes: Any) -> DDIMScheduler:
    """The scheduler of google/ddpm-celebahq-256 as DDIM, clipping as it does."""
    return ddim_scheduler(DDPMScheduler(beta_schedule="linear", clip_sample=True, **changes))


def ddim(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(**config)


def schedule_of(scheduler: DDIMScheduler, steps: int, *, eta: float = 1.0, sigma_floor: float = 0.0) -> Schedule:
    return make_schedule(noise_schedule(scheduler), steps=steps, eta=eta, sigma_floor=sigma_floor)


def in_double(scheduler: DDIMScheduler) -> DDIMScheduler:
    """The same scheduler, its alphas (and so all its arithmetic) in float64."""
    twin = copy.deepcopy(scheduler)
    twin.alphas_cumprod = scheduler.alphas_cumprod.double()
    twin.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return twin


def draw(steps: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A network's output and x_t for every step of a chain, K C H W float32; values of 1 to 3, as they occur."""
    rng = np.random.default_rng(seed)
    pair_2KCHW = torch.from_numpy(rng.standard_normal((2, steps, *SHAPE), dtype=np.float32))
    return pair_2KCHW[0], pair_2KCHW[1]


def by_diffusers(
    scheduler: DDIMScheduler, steps: int, eta: float, output_KCHW: torch.Tensor, x_KCHW: torch.Tensor
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """(timesteps, means K C H W, stds K) of `scheduler.step`: its result with noise 0, and what a noise of 1 adds.

    The std is taken where output and sample are 0 and nothing hides its last digits.
    """
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    dtype = scheduler.alphas_cumprod.dtype
    zero, one = torch.zeros(SHAPE, dtype=dtype), torch.ones(SHAPE, dtype=dtype)
    means, stds = [], []
    for row, timestep in enumerate(timesteps):
        output, x = output_KCHW[row].to(dtype), x_KCHW[row].to(dtype)
        means.append(scheduler.step(output, timestep, x, eta=eta, variance_noise=zero, return_dict=False)[0])
        stds.append(scheduler.step(zero, timestep, zero, eta=eta, variance_noise=one, return_dict=False)[0].max())
    return timesteps, torch.stack(means), torch.stack(stds)


def assert_same_chain(scheduler: DDIMScheduler, steps: int, eta: float) -> None:
    """Timesteps equal; means and stds of all steps within PRECISE of diffusers in float64, and in float32 where that
    is good enough."""
    references = [(in_double(scheduler), PRECISE)]
    if scheduler.config["beta_schedule"] != "squaredcos_cap_v2":
        references.append((scheduler, PRECISE_X0 if scheduler.config["prediction_type"] == "sample" else PRECISE))
    schedule = schedule_of(scheduler, steps, eta=eta)
    output, x = draw(steps)
    rows = range(steps)
    mean, sigma = step_mean(output, x, rows, schedule), step_sigma(rows, schedule, x).flatten()
    assert mean.dtype == torch.float32 and sigma.dtype == torch.float32
    for reference, tolerance in references:
        timesteps, true_mean, true_sigma = by_diffusers(reference, steps, eta, output, x)
        assert timesteps == [*schedule.timesteps]
        size = true_mean.abs().amax(dim=(1, 2, 3)).clamp(min=1)
        assert ((mean - true_mean).abs().amax(dim=(1, 2, 3)) / size).max() <= tolerance
        assert (sigma - true_sigma).abs().max() <= PRECISE


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_step_is_diffusers_step(spacing: Spacing, prediction: str, betas: str):
    """Mean and std of p(x_s | x_t) for K of 5, 7 (which doesn't divide T), 10, 50; clipped or not; eta of 0, 0.5, 1."""
    for clip, eta, steps in itertools.product((False, True), (0.0, 0.5, 1.0), (5, 7, 10, 50)):
        scheduler = ddim(clip_sample=clip, timestep_spacing=spacing, prediction_type=prediction, **BETAS[betas])
        assert_same_chain(scheduler, steps, eta)


@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_offsets_and_the_last_alpha(spacing: Spacing, offset: int, to_one: bool):
    """steps_offset moves the timesteps of `leading` alone; set_alpha_to_one decides how the last step ends."""
    scheduler = ddim(clip_sample=False, timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one)
    for steps in (1, 7, 50):
        assert_same_chain(scheduler, steps, 1.0)
    schedule = schedule_of(scheduler, 50)
    assert schedule.timesteps[-1] == {"leading": offset, "linspace": 0, "trailing": 19}[spacing]
    assert schedule.alpha_bar_s[-1] == (1.0 if to_one else pytest.approx(1 - 0.0001, abs=1e-7))


def test_timesteps_when_k_does_not_divide_t():
    """By hand, T = 1000, K = 7. leading: multiples of 1000 // 7 = 142. linspace: 999 k / 6. trailing: 999 - 1000 k / 7.

    A step goes down by 142 whatever the spacing, as in diffusers: with linspace from 999 to 857, not to 832.
    """
    assert chain_timesteps(1000, 7, spacing="leading", offset=0) == (852, 710, 568, 426, 284, 142, 0)
    assert chain_timesteps(1000, 7, spacing="leading", offset=1) == (853, 711, 569, 427, 285, 143, 1)
    assert chain_timesteps(1000, 7, spacing="linspace", offset=1) == (999, 832, 666, 500, 333, 166, 0)
    assert chain_timesteps(1000, 7, spacing="trailing", offset=1) == (999, 856, 713, 570, 428, 285, 142)
    alpha_bar = tuple(0.999 - t / 1010 for t in range(1000))  # tells t apart
    schedule = make_schedule(NoiseSchedule(alpha_bar, 1.0), steps=7, eta=1.0, spacing="linspace")
    assert [alpha_bar.index(ab) for ab in schedule.alpha_bar_s[:-1]] == [857, 690, 524, 358, 191, 24]
    assert schedule.alpha_bar_s[-1] == 1.0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_k_gives_k_steps_downwards(spacing: Spacing):
    """For every K of 1..T there are exactly K different timesteps within 0..T-1, the first the noisiest.

    diffusers' own `trailing` has K + 1 of them for 62 of these K (61, 103, ...), the last being -1: the noisiest again.
    """
    for steps in range(1, 1001):
        timesteps = chain_timesteps(1000, steps, spacing=spacing, offset=0)
        assert len(timesteps) == steps and all(a > b for a, b in itertools.pairwise(timesteps))
        assert timesteps[0] <= 999 and timesteps[-1] >= 0


def test_one_step_by_hand():
    """ab_t = 0.36, ab_s = 0.64, eta = 1, x_t = 1, eps = 0.5.

    sigma^2 = (0.36 / 0.64) (1 - 0.36 / 0.64) = 0.24609375; x0 = (1 - 0.8 * 0.5) / 0.6 = 1;
    mean = 0.8 * 1 + sqrt(0.36 - 0.24609375) * 0.5 = 0.8 + 0.3375 * 0.5 = 0.96875.
    """
    schedule = make_schedule(NoiseSchedule((0.64, 0.36), 0.64), steps=2, eta=1.0)
    assert schedule.timesteps == (1, 0) and schedule.alpha_bar_s == (0.64, 0.64)
    assert ddim_sigma(0.36, 0.64, eta=1.0) ** 2 == pytest.approx(0.24609375, abs=1e-15)
    mean = step_mean(torch.full((1, 1, 1, 1), 0.5), torch.ones(1, 1, 1, 1), [0], schedule)
    assert mean.item() == pytest.approx(0.96875, abs=1e-6)


def test_rows_may_stand_at_different_steps():
    """A batch of (image, step) pairs in any order gives each row what it gets alone."""
    schedule = schedule_of(celebahq(), 5)
    output, x = draw(5)
    order = [3, 0, 4, 0, 2]
    together = step_mean(output, x, order, schedule)
    for row, step in enumerate(order):
        alone = step_mean(output[row : row + 1], x[row : row + 1], [step], schedule)
        assert torch.equal(together[row : row + 1], alone)
        assert step_sigma(order, schedule, x)[row].item() == pytest.approx(schedule.sigma[step], rel=1e-7)


def test_clipping_is_of_x0_alone():
    """x0 stays within the scheduler's range, eps does not follow, and where a pixel is clipped its gradient is zero."""
    schedule = schedule_of(celebahq(clip_sample_range=1.5), 5)
    output, x = draw(5)
    output.requires_grad_()
    x0, eps = predict_x0_and_eps(output, x, range(5), schedule)
    assert x0.abs().max() == 1.5 and torch.equal(eps, output)
    (gradient,) = torch.autograd.grad(x0.sum(), output)
    assert torch.equal(gradient == 0, x0.abs() == 1.5) and (gradient == 0).any() and (gradient != 0).any()


@pytest.mark.parametrize(
    ("scheduler", "last"),
    [
        (PNDMScheduler(steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False, **BETAS["scaled_linear"]), "first"),
        (PNDMScheduler(**BETAS["scaled_linear"]), "first"),  # set_alpha_to_one is false by default there, not in DDIM
        (EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **BETAS["scaled_linear"]), "one"),
        (EulerDiscreteScheduler(**BETAS["scaled_linear"]), "one"),
        (EulerDiscreteScheduler(prediction_type="v_prediction", timestep_spacing="trailing"), "one"),
        (LCMScheduler(), "one"),  # not clipping is its default, clipping is DDIM's
    ],
    ids=["pndm-sd15", "pndm-defaults", "euler-sdxl", "euler-defaults", "euler-v", "lcm-defaults"],
)
def test_other_schedulers_become_ddim(scheduler: Any, last: str):
    """Their alphas, spacing, offset and prediction type are kept, whether given or their class's own defaults;
    clipping, which they don't do, is not gained."""
    mapped = ddim_scheduler(scheduler)
    noise = noise_schedule(mapped)
    assert isinstance(mapped, DDIMScheduler) and noise.clip is None
    assert noise.alpha_bar == tuple(scheduler.alphas_cumprod.tolist())
    assert noise.final_alpha_bar == (1.0 if last == "one" else noise.alpha_bar[0])
    assert (noise.spacing, noise.offset) == (scheduler.config["timestep_spacing"], scheduler.config["steps_offset"])
    assert noise.prediction_type == scheduler.config["prediction_type"]
    for steps in (7, 50):
        assert_same_chain(mapped, steps, 1.0)


def test_ddpm_keeps_its_clipping():
    """A DDPM that clips goes on clipping at its range; one that doesn't goes on not clipping."""
    assert noise_schedule(celebahq()).clip == 1.0
    assert noise_schedule(celebahq(clip_sample_range=2.0)).clip == 2.0
    assert noise_schedule(ddim_scheduler(DDPMScheduler(clip_sample=False))).clip is None


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_log_prob_is_the_normal_density(reduction: str):
    """torch.distributions' log-density over C H W, in float64, to 1e-6 relative; the mean is the sum over C*H*W."""
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(6, 3, 4, 5, generator=generator)
    sigma = torch.tensor([0.01, 0.05, 0.1, 0.3, 0.7, 1.0]).view(-1, 1, 1, 1)
    x = mean + sigma * torch.randn(6, 3, 4, 5, generator=generator)
    truth = Independent(Normal(mean.double(), sigma.double().expand_as(mean)), 3).log_prob(x.double())
    log_density = log_prob(x, mean, sigma, reduction="sum" if reduction == "sum" else "mean")
    truth = truth if reduction == "sum" else truth / 60
    assert log_density.shape == (6,) and log_density.dtype == torch.float32
    torch.testing.assert_close(log_density.double(), truth, rtol=1e-6, atol=1e-5)


def test_log_prob_gradient_is_the_score():
    """d log p / d mean = (x - mean) / sigma^2, the quantity that the policy gradient sends into the network."""
    generator = torch.Generator().manual_seed(2)
    x, mean = torch.randn(2, 2, 1, 3, 3, generator=generator)
    mean.requires_grad_()
    sigma = torch.tensor([0.2, 0.5]).view(-1, 1, 1, 1)
    (gradient,) = torch.autograd.grad(log_prob(x, mean, sigma, reduction="sum").sum(), mean)
    torch.testing.assert_close(gradient, (x - mean.detach()) / sigma**2, rtol=1e-5, atol=1e-6)


def test_only_the_last_step_of_celebahq_has_no_density():
    """set_alpha_to_one, offset 0: sigma is exactly 0 at the last step, so 49 of 50 steps carry the policy gradient.

    A floor for sigma gives it one, and moves no other; without noise (eta = 0) there is none at all.
    """
    schedule = schedule_of(celebahq(), 50)
    assert schedule.steps == 50 and schedule.steps_with_density == tuple(range(49)) and schedule.sigma[49] == 0.0
    floored = schedule_of(celebahq(), 50, sigma_floor=0.001)
    assert floored.steps_with_density == tuple(range(50)) and floored.sigma == (*schedule.sigma[:49], 0.001)
    assert schedule_of(celebahq(), 50, eta=0.0).steps_with_density == ()


def test_a_floor_replaces_no_part_of_the_mean():
    """With a floor the last step still ends at x0 (nothing is left of eps there), and no mean turns into NaN."""
    schedule = schedule_of(celebahq(), 5, sigma_floor=0.9)
    output, x = draw(5)
    mean = step_mean(output, x, range(5), schedule)
    x0, _ = predict_x0_and_eps(output, x, range(5), schedule)
    assert mean.isfinite().all() and torch.equal(mean[4], x0[4])


def test_uniform_and_given_weights():
    """uniform: 1 where there is a density, 0 elsewhere. Given numbers are taken as they are, but for a step without."""
    schedule = schedule_of(celebahq(), 4)
    assert step_weights(schedule, "uniform") == (1.0, 1.0, 1.0, 0.0)
    assert step_weights(schedule, (0.5, 0.0, 3.0, 7.0)) == (0.5, 0.0, 3.0, 0.0)
    assert step_weights(schedule_of(celebahq(), 4, eta=0.0), "balanced") == (0.0,) * 4


@pytest.mark.parametrize("steps", [5, 50])
def test_balanced_weights_give_every_step_the_same_say(steps: int):
    """weight * |d mean / d eps| / sigma, the size of a step's gradient at the network, is one number for all steps, and
    the weights' mean is 1. d mean / d eps is autograd's; unweighted, the last steps weigh 5 to 15 times the first."""
    scheduler = ddim_scheduler(DDPMScheduler(clip_sample=False))
    schedule = schedule_of(scheduler, steps)
    output, x = draw(steps)
    output.requires_grad_()
    (slope_KCHW,) = torch.autograd.grad(step_mean(output, x, range(steps), schedule).sum(), output)
    slopes = slope_KCHW.abs()[:, 0, 0, 0].tolist()
    usable = schedule.steps_with_density
    weights = step_weights(schedule, "balanced")
    sizes = [weights[k] * slopes[k] / schedule.sigma[k] for k in usable]
    assert max(sizes) / min(sizes) == pytest.approx(1, abs=1e-4)
    assert sum(weights[k] for k in usable) / len(usable) == pytest.approx(1) and weights[-1] == 0
    assert [mean_per_prediction(schedule, k) for k in range(steps)] == pytest.approx(slopes, rel=1e-4)
    unweighted = [slopes[k] / schedule.sigma[k] for k in usable]
    assert 5 < unweighted[-1] / unweighted[0] < 15 or steps != 50


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prediction_type": "flow"}, "prediction_type must be one of"),
        ({"thresholding": True}, "dynamic thresholding is not supported"),
        ({"timestep_spacing": "karras"}, "timestep_spacing must be one of"),
    ],
)
def test_a_scheduler_that_is_no_ddim_is_refused(changes: dict[str, object], said: str):
    """In one line that says what is known."""
    scheduler = ddim()
    scheduler.register_to_config(**changes)
    with pytest.raises(ConfigError, match=said) as caught:
        noise_schedule(scheduler)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [0, 1001])
def test_the_number_of_steps_has_bounds(steps: int):
    """The line names the key, the bounds and what was got."""
    with pytest.raises(ConfigError, match=rf"^sampler\.steps must be 1\.\.1000 for this model, got {steps}$"):
        schedule_of(celebahq(), steps)


def test_an_offset_beyond_the_schedule_is_refused():
    """steps_offset 1 with K = T would ask for timestep T: the line says which, and what to use instead."""
    scheduler = ddim(steps_offset=1)
    with pytest.raises(ConfigError, match=r"^sampler\.steps 1000 .*steps_offset 1 asks for timestep 1000 of 1000; use"):
        schedule_of(scheduler, 1000)
    assert schedule_of(scheduler, 500).timesteps[0] == 999
    assert math.isclose(schedule_of(scheduler, 500).alpha_bar_t[0], float(scheduler.alphas_cumprod[999]))


def test_sub_schedules_by_hand():
    """T = 1000, K = 5. linear: i 999 / 4 rounded down. quadratic: (i sqrt(800) / 4)^2 = 50 i^2. Each step goes to the
    next timestep, the last one to the image; eta 1 gives DDPM's posterior variance between them, and `final_std` the
    last step, which has none else."""
    noise = noise_schedule(ddim(clip_sample=False, **BETAS["linear"]))
    linear = make_schedule(noise, steps=5, eta=1, sub_schedule="linear", final_std=0.001)
    assert linear.timesteps == (999, 749, 499, 249, 0)
    quadratic = make_schedule(noise, steps=5, eta=1, sub_schedule="quadratic")
    assert quadratic.timesteps[1:] == (450, 200, 50, 0) and quadratic.timesteps[0] in (799, 800)  # by rounding
    for schedule in (linear, quadratic):
        assert schedule.alpha_bar_s == (*schedule.alpha_bar_t[1:], 1.0)
        for t, s, sigma in zip(schedule.alpha_bar_t[:-1], schedule.alpha_bar_s[:-1], schedule.sigma[:-1], strict=True):
            beta = 1 - t / s
            assert sigma == pytest.approx(math.sqrt(beta * (1 - s) / (1 - t)))
    assert linear.sigma[-1] == 0.001 and quadratic.sigma[-1] == 0
    assert len(linear.steps_with_density) == 5 and len(quadratic.steps_with_density) == 4


def test_sub_schedules_that_repeat_a_timestep_are_refused():
    """(sqrt(800) / 29)^2 < 1: timestep 0 would come twice. One step alone would begin at the image."""
    noise = noise_schedule(ddim(clip_sample=False, **BETAS["linear"]))
    assert make_schedule(noise, steps=29, eta=1, sub_schedule="quadratic").steps == 29
    with pytest.raises(ConfigError, match="takes a timestep of 1000 twice"):
        make_schedule(noise, steps=30, eta=1, sub_schedule="quadratic")
    with pytest.raises(ConfigError, match=r"needs sampler\.steps of at least 2"):
        make_schedule(noise, steps=1, eta=1, sub_schedule="linear")
