"""SFT-PG: closed forms with their signs, plain torch, resumed runs, ranks, bad input, and the plan."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from memdiff.chain.noise import Noise, Stream
from memdiff.chain.schedule import Schedule
from memdiff.engine.checkpoint import Checkpoints
from memdiff.engine.config import OptimizerConfig
from memdiff.engine.engine import DeepSpeedEngine
from memdiff.errors import ConfigError, NumericError
from memdiff.methods.build import build_method
from memdiff.methods.critic import Critic
from memdiff.methods.learner import Learner, start
from memdiff.methods.learners_config import LEARNT_BYTES, CriticConfig, ValueConfig
from memdiff.methods.real_images import RealImages, load_real_images
from memdiff.methods.sft_pg import Experience, ShortcutFineTuning
from memdiff.methods.sft_pg_config import RealDataset, RealDigits, RealFolder, SftPgConfig
from memdiff.methods.value_function import ValueFunction, new_value_function
from memdiff.recipe.reading import check_recipe
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces
from tests.helpers.one_graph import ALONE, knobs, round_of
from tests.helpers.ranks import run_ranks
from tests.helpers.reference_engine import ReferenceEngine
from tests.helpers.tiny import CPU, tiny_policy
from tests.planner.test_plan import EVERYTHING_HERE, composed_and_whole
from tests.workers.sft_pg_ranks import real_images, shortcut, whole_rounds

SIGMA, STEPS, THETA, SLOPE = 0.5, 3, 0.2, 2.0


class Walk:
    """x_{k+1} = x_k + theta + sigma z_k, three times, from x_0 = 1 x noise: E x = 3 theta."""

    def __init__(self) -> None:
        self.theta = torch.nn.Parameter(torch.tensor(THETA))
        ones = (0.5,) * STEPS
        self.schedule = Schedule((2, 1, 0), ones, ones, (SIGMA,) * STEPS, "epsilon", None)
        self.shape, self.device, self.dtype = (1, 1, 1), CPU, torch.float32
        self.networks = {"unet": torch.nn.Module()}

    def mean(self, x_t_BCHW: torch.Tensor, steps: Sequence[int], prompts: Sequence[str]) -> torch.Tensor:
        return x_t_BCHW + self.theta

    def decode(self, x_0_BCHW: torch.Tensor) -> torch.Tensor:
        return x_0_BCHW

    def encode(self, prompts: Sequence[str]) -> None:
        pass

    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        return {"theta": self.theta}

    def trains(self, step: int) -> bool:
        return True


class Linear(torch.nn.Module):
    """A critic that is known: f(x) = slope x."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(SLOPE))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.slope * images_BCHW.flatten(start_dim=1).sum(dim=1)


class Expected(torch.nn.Module):
    """Its true value function: E f given x_k is slope (x_k + (3 - k) theta)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(SLOPE))

    def forward(self, x_BCHW: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
        left_B = torch.tensor([STEPS - step for step in steps])
        return self.slope * (x_BCHW.flatten(start_dim=1).sum(dim=1) + left_B * THETA)


class Nothing(torch.nn.Module):
    """A value function that is zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x_BCHW: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
        return self.weight * x_BCHW.flatten(start_dim=1).sum(dim=1)


def on_a_walk(policy: Any, value: torch.nn.Module, images: int) -> ShortcutFineTuning:
    """All pairs in one update; critic and value function stay as they are (learning rate 0)."""
    critic: Any = Learner(Linear(), "critic", learning_rate=0.0, ranks=ALONE)
    learnt: Any = Learner(value, "value", learning_rate=0.0, ranks=ALONE)
    config = SftPgConfig.model_validate(
        {"kind": "sft_pg", "real": {"kind": "digits"}, "critic_steps": 1, "generator_updates": 1,
         "minibatch": images * STEPS, "log_prob_reduction": "sum"}
    )  # fmt: skip
    pieces = Pieces(Gradients(list(policy.trainable().values())))
    return ShortcutFineTuning(config, critic, learnt, RealImages(torch.zeros(3, 1, 1, 1)), pieces, ALONE, knobs(512))


def one_update(method: ShortcutFineTuning, policy: Any, images: int) -> tuple[float, Experience]:
    """d loss / d theta of a round's only update."""
    experience = method.collect(policy, round_of(policy, images))
    (part,) = method.updates(experience)
    method.differentiate(policy, part)
    return float(method.pieces.gradients.sums[0]), part


def z_of(part: Experience, policy: Walk) -> tuple[torch.Tensor, torch.Tensor]:
    """(z of each step, x_0): 3 N and N, in fp64."""
    states_KN = torch.stack([part.trajectory.state(k).flatten() for k in range(STEPS + 1)]).double()
    return (states_KN[1:] - states_KN[:-1] - THETA) / SIGMA, states_KN[-1]


def test_sample_by_sample_on_a_gaussian_chain() -> None:
    """log p(x_{k+1} | x_k) = -(x_{k+1} - x_k - theta)^2 / (2 sigma^2) + c, whose slope in theta is z_k / sigma. The
    loss is the mean over the 3 N pairs of (f(x_0) - v) log p, whose slope is the mean of (f(x_0) - v) z_k / sigma."""
    policy: Any = Walk()
    slope, part = one_update(on_a_walk(policy, Nothing(), 50), policy, 50)
    z_KN, x_N = z_of(part, policy)
    assert slope == pytest.approx(float((SLOPE * x_N * z_KN / SIGMA).mean()), rel=1e-5)
    slope, part = one_update(on_a_walk(policy, Expected(), 50), policy, 50)
    states_KN = torch.stack([part.trajectory.state(k).flatten() for k in range(STEPS)]).double()
    left_K1 = torch.tensor([[3.0], [2.0], [1.0]])
    advantages_KN = SLOPE * (x_N - states_KN - left_K1 * THETA)
    assert slope == pytest.approx(float((advantages_KN * z_KN / SIGMA).mean()), rel=1e-5)


@pytest.mark.parametrize(("value", "variance"), [(Nothing, 15.2533), (Expected, 4.0)])
def test_in_expectation_on_a_gaussian_chain(value: Any, variance: float) -> None:
    """The cost J = E f(x_0) = slope 3 theta, dJ / dtheta = 6, and the mean over pairs is a third of it: the loss's
    gradient is +2, so that an optimizer, which goes against it, lowers theta and the cost. With rewards it would be -2.

    Var of one image's mean over k of (f - v) z_k / sigma, s = slope = 2, sigma = 1/2, x_init ~ N(0, 1):
    v the true one: s / 3 sum_k sum_{j >= k} z_j z_k, the squares' variance 2 each and the 3 products' 1 each:
    (2/3)^2 (3 x 2 + 3) = 4. v = 0: besides (s / 3) sum_k z_k (x_init + 3 theta) / sigma, variance
    (2/3)^2 x 3 x (1 + 0.36) x 4 = 7.25, and every product twice: (2/3)^2 (6 + 4 x 3) = 8; together 15.25.
    """
    policy: Any = Walk()
    images = 4096
    slope, part = one_update(on_a_walk(policy, value(), images), policy, images)
    assert slope == pytest.approx(SLOPE, abs=5 * math.sqrt(variance / images))
    z_KN, x_N = z_of(part, policy)
    states_KN = torch.stack([part.trajectory.state(k).flatten() for k in range(STEPS)])
    with torch.no_grad():
        v_KN = torch.stack([value()(states_KN[k].view(-1, 1, 1, 1), [k] * images) for k in range(STEPS)])
    per_image_N = ((SLOPE * x_N - v_KN) * z_KN / SIGMA).mean(dim=0)
    assert float(per_image_N.var()) == pytest.approx(variance, rel=0.15)


def test_the_divergence_on_a_gaussian_chain() -> None:
    """theta moved by d: KL = d^2 / (2 sigma^2) at every pair, 0.02 for d = 0.1; before it moves none."""
    policy: Any = Walk()
    _, part = one_update(on_a_walk(policy, Nothing(), 20), policy, 20)
    method = on_a_walk(policy, Nothing(), 20)
    assert method._divergence(part) == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        policy.theta += 0.1
    assert method._divergence(part) == pytest.approx(0.02, rel=1e-4)


def test_beyond_the_bound_the_round_ends_and_the_rate_is_halved() -> None:
    """The first update is always taken; the second is not, once theta has moved. Both last: `state` holds the rate."""
    policy: Any = Walk()
    method = on_a_walk(policy, Nothing(), 20)
    method.config = method.config.model_copy(update={"generator_updates": 3, "minibatch": 20, "max_kl": 0.01})
    experience = method.collect(policy, round_of(policy, 20))
    updates = 0
    for part in method.updates(experience):
        updates += 1
        assert len(part.pairs) == part.num_pairs == 20
        with torch.no_grad():
            policy.theta += 0.1
    assert updates == 1 and method.rate == 0.5 and method.state() == {"rate": [0.5]}
    assert experience.metrics["skipped_minibatches"] == 2 and experience.metrics["kl"] == pytest.approx(0.02, rel=1e-4)
    again = on_a_walk(policy, Nothing(), 20)
    again.restore(json.loads(json.dumps(method.state())))
    assert again.rate == 0.5


def test_minibatches_are_all_pairs_once() -> None:
    """Three of 20 of the 60 pairs of a round: a partition, another one in another round, the same when asked again."""
    policy: Any = Walk()
    method = on_a_walk(policy, Nothing(), 20)
    method.config = method.config.model_copy(update={"generator_updates": 3, "minibatch": 20})

    def pairs(number: int) -> list[tuple[int, int]]:
        experience = method.collect(policy, round_of(policy, 20, number=number))
        return [pair for part in method.updates(experience) for pair in part.pairs]

    assert sorted(pairs(1)) == [(image, step) for image in range(20) for step in range(STEPS)]
    assert pairs(1) == pairs(1) != pairs(2)


class SmallCritic(torch.nn.Module):
    """A critic of one number."""

    def __init__(self) -> None:
        super().__init__()
        hidden = torch.nn.Linear(1, 16)
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.LeakyReLU(0.2), torch.nn.Linear(16, 1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.layers(images_BCHW)[:, 0]


def mean_over_rounds(regularisation: str) -> list[float]:
    """E x_0 = 3 theta after each of 40 rounds of 128 walks against real numbers around 2, from 0.6."""
    policy: Any = Walk()
    critic: Any = Learner(start(SmallCritic(), 0), "critic", learning_rate=3e-2, ranks=ALONE)
    value = new_value_function(ValueConfig(learning_rate=1e-2, width=16), policy.shape, STEPS, ALONE, 0)
    config = SftPgConfig.model_validate(
        {"kind": "sft_pg", "real": {"kind": "digits"}, "critic_steps": 1, "critic_passes": 5, "generator_updates": 3,
         "warmup_rounds": 3, "critic_regularisation": regularisation}
    )  # fmt: skip
    real = RealImages(2 + 1.3 * torch.randn(512, 1, 1, 1, generator=torch.Generator().manual_seed(0)))
    engine = ReferenceEngine(
        policy.trainable(), OptimizerConfig(learning_rate=0.03, weight_decay=0, clip_norm=0), ALONE
    )
    settings = knobs(512, rollout_batch=128)
    method = ShortcutFineTuning(config, critic, value, real, Pieces(engine.gradients), ALONE, settings)
    means = []
    for number in range(1, 41):
        for part in method.updates(method.collect(policy, round_of(policy, 128, number=number))):
            method.differentiate(policy, part)
            engine.apply(method.rate)
        means.append(3 * policy.theta.item())
    return means


def test_a_walk_learns_to_end_where_real_numbers_lie() -> None:
    """Critic, value function and policy together, signs and all: from 0.6 to 2 and there it stays (over three seeds of
    the critic, 1.7 to 2.5 from round 10 on). A critic that is not regularised drives it past, beyond 4, and back."""
    regularised, alone = mean_over_rounds("baseline"), mean_over_rounds("none")
    assert regularised[2] == pytest.approx(0.6)  # warm-up
    assert all(1.4 < mean < 2.9 for mean in regularised[11:])
    assert sum(regularised[20:]) / 20 == pytest.approx(2, abs=0.3)
    assert max(alone) > 3.5


@pytest.mark.parametrize(("regularisation", "noise"), [("baseline", 0.0), ("none", 0.0), ("baseline", 0.3)])
def test_critic_steps_are_plain_torch(regularisation: str, noise: float) -> None:
    """Two passes of two steps of Adam on one graph of 1/B sum f(real) - 1/B sum f(fake) + 1/B sum_i sum_k (v - f)^2, f
    in the last term a constant or not: the same weights. With a value function that has learnt something: it pulls.
    With noise f sees real and made images through draws that no two passes share, and a cost is a mean of three more.
    """
    policy = tiny_policy(steps=4, final_std=0.001)
    seen = {"noise": noise, "noise_draws": 3}
    method = shortcut(policy, ALONE, critic_regularisation=regularisation, critic_passes=2, critic=seen)
    with torch.no_grad():
        method.value.network.value.weight.fill_(0.3)
    critic, value = copy.deepcopy(method.critic.network), copy.deepcopy(method.value.network)
    optimizers = [torch.optim.Adam(network.parameters(), lr=lr) for network, lr in ((critic, 3e-3), (value, 2e-3))]
    this_round = round_of(policy, 7)
    experience = method.collect(policy, this_round)
    images = policy.decode(experience.trajectory.final(range(7)))
    drawn = method.phase.real.of(seed=7, round_number=1, num_images=14, positions=range(14))
    through = Noise(seed=7, stream=Stream.CRITIC, round_number=1, shape=(1, 8, 8))
    for number in range(4):
        rows, real = list(range(number % 2, 7, 2)), drawn[7 * (number // 2) :]
        on_made, on_real = (noise * through.step(rows, 2 * (number // 2) + k) for k in (0, 1))
        fake = critic(images[rows] + on_made)
        loss = critic(real[rows] + on_real).mean() - fake.mean()
        target = fake if regularisation == "baseline" else fake.detach()
        for step in range(4):
            x, _ = experience.trajectory.transitions([(row, step) for row in rows])
            loss = loss + (value(x, [step] * len(rows)) - target).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    for mine, plain in ((method.critic.network, critic), (method.value.network, value)):
        for got, truth in zip(mine.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        draws = [critic(images + noise * through.step(range(7), 2**32 + draw)) for draw in range(3)]
        torch.testing.assert_close(-experience.rewards_N, sum(draws) / 3, rtol=1e-4, atol=1e-5)


def test_an_update_is_plain_autograd() -> None:
    """One graph of the mean over a minibatch of (f(x_0) - v(x_t)) log p, in pieces of 3 that don't divide it."""
    from memdiff.chain.ddim import log_prob, step_sigma

    policy = tiny_policy(steps=4, final_std=0.001)
    method = shortcut(policy, ALONE)
    experience = method.collect(policy, round_of(policy, 7))
    part = next(iter(method.updates(experience)))
    method.differentiate(policy, part)
    images, steps = [image for image, _ in part.pairs], [step for _, step in part.pairs]
    assert 3 in steps  # the last one has a density
    x_t, x_s = part.trajectory.transitions(part.pairs)
    mean = policy.mean(x_t, steps)
    log_p = log_prob(x_s, mean, step_sigma(steps, policy.schedule, mean), reduction="mean")
    with torch.no_grad():
        costs = method.critic.network(policy.decode(part.trajectory.final(images)))
        advantages = costs - method.value.network(x_t, steps)
    parameters = list(policy.trainable().values())
    truth = torch.autograd.grad((advantages * log_p).mean(), parameters)
    for got, wanted in zip(method.pieces.gradients.sums, truth, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=5e-6 * float(wanted.abs().max() + 1))


def test_what_does_not_fit_is_made_again_in_halves() -> None:
    """Memory runs out in the third piece of three pairs, in its mean: the same gradient, counted once."""
    policy = tiny_policy(steps=4, final_std=0.001)
    method = shortcut(policy, ALONE)
    part = next(iter(method.updates(method.collect(policy, round_of(policy, 7)))))
    metrics = method.differentiate(policy, part)
    truth = [total.clone() for total in method.pieces.gradients.sums]
    short: Any = tiny_policy(steps=4, final_std=0.001)
    calls, mean = [], short.mean

    def failing(*arguments: Any) -> torch.Tensor:
        calls.append(len(arguments[1]))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return mean(*arguments)

    again = shortcut(short, ALONE)
    part = next(iter(again.updates(again.collect(short, round_of(short, 7)))))
    short.mean = failing
    again_metrics = again.differentiate(short, part)
    assert calls == [3, 3, 3, 2, 2] and again.size.rows == 2
    for got, wanted in zip(again.pieces.gradients.sums, truth, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max() + 1))
    assert again_metrics == pytest.approx(metrics, rel=1e-4)


def test_a_rehearsal_leaves_no_trace() -> None:
    """Weights of model, critic and value function, and the learners' sums, are as before; the model's sums are not."""
    policy = tiny_policy(steps=4, final_std=0.001)
    method = shortcut(policy, ALONE)
    before = [parameter.clone() for parameter in [*weights_of(policy), *weights_of(method)]]
    method.rehearse(policy, Noise(seed=0, stream=Stream.PROBE, round_number=0, shape=policy.shape), 3, [""])
    assert all(map(torch.equal, before, [*weights_of(policy), *weights_of(method)]))
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in weights_of(method))  # pyright: ignore
    assert 0 < float(method.pieces.gradients.max_abs()) < math.inf


class KilledError(Exception):
    """As a kill would be, in the middle of something."""


class Engine:
    """In DeepSpeed's place in a checkpoint: no update has been made when it is written."""

    def save(self, folder: Path) -> None:
        (folder / "shard").write_text("nothing")

    def load(self, folder: Path) -> None:
        assert (folder / "shard").is_file()


def test_resume_in_the_middle_of_a_critic_phase(tmp_path: Path) -> None:
    """Three rounds of warm-up and one with updates, against the same run, killed at the second critic step of round 2
    and resumed from the checkpoint of round 1 in new objects: the same bits in critic, value function and model."""

    def start() -> tuple[Any, ShortcutFineTuning, ReferenceEngine]:
        policy = tiny_policy(steps=4, final_std=0.001)
        method = shortcut(policy, ALONE, warmup_rounds=3)
        engine = ReferenceEngine(policy.trainable(), OptimizerConfig(learning_rate=1e-3), ALONE)
        method.pieces = Pieces(engine.gradients)
        return policy, method, engine

    straight = start()
    whole_rounds(*straight, rounds=range(1, 5))
    policy, method, engine = start()
    whole_rounds(policy, method, engine, rounds=[1])
    checkpoints = Checkpoints(tmp_path, ALONE, keep=2)
    checkpoints.learners = method.learners
    checkpoints.save(cast(DeepSpeedEngine, Engine()), {"round": 1, "objective": method.state()})
    real, asked = method.phase.real, []

    class Dying(RealImages):
        def of(self, **options: Any) -> torch.Tensor:
            asked.append(options)
            if len(asked) == 2:
                raise KilledError
            return real.of(**options)

    method.phase.real = Dying(real.images_MCHW)
    before = [parameter.clone() for parameter in method.critic.parameters]
    with pytest.raises(KilledError):
        whole_rounds(policy, method, engine, rounds=[2])
    assert not torch.equal(before[0], method.critic.parameters[0])  # a step of the phase had been taken
    policy, method, engine = start()
    latest = checkpoints.latest()
    assert latest is not None
    checkpoints.learners = method.learners
    checkpoints.load(cast(DeepSpeedEngine, Engine()), latest[0])
    method.restore(latest[1]["objective"])
    whole_rounds(policy, method, engine, rounds=range(2, 5))
    for mine, theirs in ((policy, straight[0]), (method, straight[1])):
        for got, wanted in zip(weights_of(mine), weights_of(theirs), strict=True):
            assert torch.equal(got, wanted)
    assert engine.updates == 2


def weights_of(thing: Any) -> list[torch.Tensor]:
    """Of a policy, or of an objective's networks."""
    if isinstance(thing, ShortcutFineTuning):
        return [parameter for learner in thing.learners.values() for parameter in learner.parameters]
    return list(thing.trainable().values())


def test_ranks_agree(tmp_path: Path) -> None:
    """Two rounds on 1, 2 and 3 ranks, seven images: the same pairs, real images and costs, and weights up to rounding,
    which Adam's first steps can blow up where a gradient is near zero. Copies of one run are equal bit for bit."""
    from tests.workers.sft_pg_ranks import results

    alone = results(ALONE)
    for world_size in (2, 3):
        ranks = run_ranks("sft_pg_ranks", world_size, {}, tmp_path / str(world_size))
        assert len({rank["bits"] for rank in ranks}) == 1
        assert sorted(tuple(pair) for rank in ranks for pair in rank["pairs"]) == sorted(
            tuple(pair) for pair in alone["pairs"]
        )
        by_step = [image for rank in ranks for image in rank["step_advantages"]]
        np.testing.assert_allclose(by_step, alone["step_advantages"], rtol=1e-3, atol=1e-3)
        assert ranks[0]["costs"] == pytest.approx(alone["costs"], rel=1e-3, abs=1e-4)
        for key in ("ipm", "value_loss", "kl", "advantage_std", "log_prob"):
            assert ranks[0][key] == pytest.approx(alone[key], rel=2e-3, abs=1e-5), key
        for key in ("gradient", "critic", "value"):
            got, wanted = np.array(ranks[0][key]), np.array(alone[key])
            assert np.linalg.norm(got - wanted) <= 2e-3 * np.linalg.norm(wanted), key


RECIPE = {
    "model": {"kind": "embedded"},
    "sampler": {"steps": 4, "sub_schedule": "quadratic", "final_std": 0.001},
    "method": {"kind": "sft_pg", "real": {"kind": "digits"}, "minibatch": 8, "generator_updates": 2},
    "run": {"images_per_round": 8},
}


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("method", {"minibatch": 20}, "at most the 32 pairs of a round (8 images, 4 steps that can be trained)"),
        ("method", {"critic_steps": 9}, "method.critic_steps must be at most run.images_per_round, 8, got 9"),
        ("method", {"real": {"kind": "folder", "path": "/no/such/folder"}}, "no such folder: /no/such/folder"),
        ("method", {"critic": {"widths": [0, 1, 2]}}, "critic.widths.0: input should be greater than or equal to 1"),
        ("method", {"critic": {"learning_rate": 0}}, "method.critic.learning_rate: input should be greater than 0"),
        ("sampler", {"eta": 0}, "sampler.eta 0 has no density, so method sft_pg has no gradient; set sampler.eta to 1"),
        ("sampler", {"timestep_spacing": "leading"}, "sub_schedule and timestep_spacing both choose the timesteps"),
        ("model", {"name": "digits_text"}, "takes models of images without prompts, such as model.kind ddpm"),
        ("memory", {"one_pass": True}, "memory.one_pass is for method.kind: reinforce, got sft_pg"),
    ],
)  # fmt: skip
def test_bad_recipes_are_one_line(section: str, changes: dict[str, Any], message: str) -> None:
    before: dict[str, Any] = RECIPE.get(section, {})
    with pytest.raises(ConfigError) as refused:
        check_recipe({**RECIPE, section: before | changes}, source="recipe.yaml")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_it_takes_no_reward_and_others_need_one() -> None:
    with pytest.raises(ConfigError, match=r"method\.kind sft_pg takes none, since its critic is the cost"):
        check_recipe({**RECIPE, "reward": [{"kind": "digits"}]}, source="recipe.yaml")
    with pytest.raises(ConfigError, match=r"reward: method\.kind reinforce needs at least 1 part, got none"):
        check_recipe({**RECIPE, "reward": [], "method": {"kind": "reinforce"}}, source="recipe.yaml")
    assert check_recipe(RECIPE, source="recipe.yaml").reward == ()


@pytest.mark.parametrize(
    ("size", "mode", "message"),
    [
        ((8, 8), "L", None),
        ((8, 8), "RGB", "has pixel mode RGB, and the model makes L; convert the images to L"),
        ((9, 8), "L", "has 1 x 8 x 9 (channels x height x width), and the model makes 1 x 8 x 8"),
        (None, "L", "needs images to learn from, got none in"),
    ],
)
def test_a_folder_of_real_images(tmp_path: Path, size: tuple[int, int] | None, mode: str, message: str | None) -> None:
    if size is not None:
        for number in range(3):
            Image.new(mode, size, 51 * number if mode == "L" else (0, 0, 0)).save(tmp_path / f"{number}.png")
    config = RealFolder(kind="folder", path=str(tmp_path))
    if message is None:
        images = load_real_images(config, (1, 8, 8))
        drawn = images.of(seed=0, round_number=1, num_images=3, positions=range(3))
        assert sorted(drawn[:, 0, 0, 0].tolist()) == pytest.approx([0, 0.2, 0.4])  # each once, 51 being a fifth of 255
    else:
        with pytest.raises(ConfigError) as refused:
            load_real_images(config, (1, 8, 8))
        assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"broken\.png can't be read as an image"):
        load_real_images(RealFolder(kind="folder", path=str(tmp_path)), (1, 8, 8))


def test_embedded_digits_are_for_the_embedded_model() -> None:
    with pytest.raises(ConfigError, match="the embedded digits has 1 x 16 x 16"):
        load_real_images(RealDigits(kind="digits"), (3, 32, 32))
    assert len(load_real_images(RealDigits(kind="digits"), (1, 16, 16)).images_MCHW) == 1437


def test_a_dataset_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="pip install datasets; or give kind: folder"):
        load_real_images(RealDataset(kind="dataset", name="uoft-cs/cifar10"), (3, 32, 32))


def test_a_dataset_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the package's place a module that does what is asked of it: rows of PIL images under column names."""
    import sys
    import types

    class Rows(list):
        column_names = ("img", "label")

    rows = Rows({"img": Image.new("L", (8, 8), 255), "label": number} for number in range(4))
    fake = types.SimpleNamespace(load_dataset=lambda name, split, revision: rows)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    images = load_real_images(RealDataset(kind="dataset", name="some/digits"), (1, 8, 8))
    assert images.of(seed=0, round_number=1, num_images=4, positions=[0]).min() == 1
    with pytest.raises(ConfigError, match=r"method\.real\.column must be one of img, label in some/digits, got image"):
        load_real_images(RealDataset(kind="dataset", name="some/digits", column="image"), (1, 8, 8))
    with pytest.raises(ConfigError, match="is no image but int; name the column of images"):
        load_real_images(RealDataset(kind="dataset", name="some/digits", column="label"), (1, 8, 8))


def test_images_that_are_too_small_for_the_critic() -> None:
    from memdiff.methods.critic import new_critic

    with pytest.raises(ConfigError, match="images of at least 8 x 8 pixels"):
        new_critic(CriticConfig(), (1, 4, 8), ALONE, 0)


def test_a_critic_that_diverges_is_named() -> None:
    """Exit code 4, the step and the key to change."""
    policy = tiny_policy(steps=4, final_std=0.001)
    method = shortcut(policy, ALONE)
    with torch.no_grad():
        method.critic.parameters[0].fill_(math.inf)
    with pytest.raises(
        NumericError, match=r"the critic diverged.* at critic step 0 of round 1; lower method\.critic"
    ) as e:
        method.collect(policy, round_of(policy, 7))
    assert e.value.exit_code == 4


@pytest.mark.parametrize(("shape", "steps"), [((1, 16, 16), 10), ((3, 32, 32), 4)])
def test_the_section_declares_what_the_networks_take(shape: tuple[int, int, int], steps: int) -> None:
    """Weights of the modules themselves, with their gradient and two moments in fp32."""
    method = SftPgConfig.model_validate({"kind": "sft_pg", "real": {"kind": "digits"}})
    critic, value = Critic(shape[0], method.critic.widths), ValueFunction(shape, steps, method.value.width)
    weights = sum(parameter.numel() for network in (critic, value) for parameter in network.parameters())
    assert method.own_bytes(shape, steps) == LEARNT_BYTES * weights
    learner: Any = new_value_function(ValueConfig(), shape, steps, ALONE, 0)
    state = learner.state_dict()["optimizer"]["state"].values()
    moments = sum(entry[key].nbytes for entry in state for key in ("exp_avg", "exp_avg_sq"))
    own = sum(parameter.nbytes + parameter.grad.nbytes for parameter in learner.parameters)
    assert own + moments == LEARNT_BYTES * ValueConfig().elements(shape, steps)


def test_the_plan_is_the_whole_round() -> None:
    """As test_plan.py holds the other methods: the largest peak within 1 %, no phase promised less than it takes.

    Critic steps are planned as one on all images, which is more than each takes."""
    recipe = check_recipe(
        {**RECIPE, "model": {"kind": "embedded", "precision": "fp32"}, "sampler": {**RECIPE["sampler"], "steps": 5},
         "method": {**RECIPE["method"], "critic_steps": 2, "generator_updates": 2, "minibatch": 15,
                    "critic": {"widths": [8, 16, 16]}, "value": {"width": 16}},
         "run": {"images_per_round": 6}},
        source="test",
    )  # fmt: skip
    settings = EVERYTHING_HERE.model_copy(update={"micro_batch": 5, "rollout_batch": 6})
    composed, whole, flops, whole_flops = composed_and_whole(recipe, settings)
    assert max(composed.values()) == pytest.approx(max(whole.values()), rel=0.01), (composed, whole)
    for phase, size in whole.items():
        assert composed[phase] >= 0.99 * size, phase
    assert flops == pytest.approx(whole_flops, rel=0.03)


def test_it_is_built_from_a_recipe() -> None:
    """Two builds of one seed start equal, of another not; building them leaves torch's own generator as it is not."""
    policy = tiny_policy(steps=4, side=16)
    config = SftPgConfig.model_validate({"kind": "sft_pg", "real": {"kind": "digits"}, "critic": {"widths": [4, 4, 4]}})
    none = WeightedReward([], device=CPU)

    def built(seed: int) -> torch.Tensor:
        pieces = Pieces(Gradients(list(policy.trainable().values())))
        method: Any = build_method(config, none, pieces, ALONE, knobs(), policy, seed=seed)
        return torch.cat([parameter.flatten() for parameter in method.critic.parameters])

    assert torch.equal(built(1), built(1)) and not torch.equal(built(1), built(2))


def test_real_images_are_drawn_once_a_pass() -> None:
    """Five images in rounds of seven: 35 positions see each seven times, whoever asks for which."""
    images = real_images(5)
    seen = [
        float(images.of(seed=3, round_number=round_number, num_images=7, positions=[position])[0].sum())
        for round_number in range(1, 6)
        for position in range(7)
    ]
    assert sorted(seen) == sorted(7 * [float(image.sum()) for image in images.images_MCHW])
    together = images.of(seed=3, round_number=2, num_images=7, positions=range(7))
    assert [float(image.sum()) for image in together] == pytest.approx(seen[7:14])
