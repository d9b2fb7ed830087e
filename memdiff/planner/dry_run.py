"""One short round of a recipe's own algorithm on fake tensors: peaks and FLOPs by phase.

The chain is cut to two steps: one whose graph is kept where the method keeps any, and one that is made again. Peaks
don't depend on the number of steps but by the stored states and the kept graphs, which `compose` adds.

Shapes: B images of the round.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from memdiff.memory.knobs import TABLE, Knobs
from memdiff.memory.offload import decoding, offload_idle, scoring
from memdiff.methods.build import build_method
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.workload import Chain, Workload
from memdiff.models.load import skeleton_policy
from memdiff.models.pixels import to_uint8
from memdiff.models.policy import Policy
from memdiff.planner.fake_tensors import GPU, BlankNoise, fake_gpu
from memdiff.planner.ledger import Ledger, Peak
from memdiff.recipe.model_options import model_options
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.build import build_weighted
from memdiff.rewards.guards import diversity
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.memory_tags import MemoryTag, memory_tag
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Gradients, Pieces, Pull

STEPS = 2
PROMPT = "a"


@dataclass(frozen=True)
class Sizes:
    """What is there before anything runs: bytes and elements."""

    unet: int
    unet_trained: int  # of it
    decoder: int
    rewards: int
    held_out: int  # of rewards that score evaluations alone
    encoders: int
    elements: int  # trained
    largest_elements: int  # of one trained parameter
    state_elements: int  # of one x_t
    own_networks: int = 0  # that the method trains beside the model, with their optimizers: as its section declares


@dataclass(frozen=True)
class Measured:
    """One short round of `images` images."""

    images: int
    work: Workload
    peaks: Mapping[str, Peak]
    flops: Mapping[str, int]
    recomputed_flops: Mapping[str, int]  # of them, what checkpoints ran again
    kept_bytes: int  # of one step's graph between its forward and its pull
    without_graph_bytes: int  # activations at the rollout's peak before the first graph was made
    sizes: Sizes
    evaluated_images: int  # of an evaluation, decoded and scored at once; 0: not measured
    evaluated: Mapping[MemoryTag, int]  # what that takes besides networks and what was there before


def measure(
    recipe: Recipe,
    knobs: Knobs,
    *,
    precision: str,
    images: int,
    steps: int = STEPS,
    evaluated: int = 0,
    paths: bool = True,
    cut_method: bool = True,
) -> Measured:
    """Runs `collect`, `updates` and `differentiate` on `images` images and a chain of `steps`.

    `evaluated`: images of an evaluation that is scored afterwards, with everything on the GPU. `paths`: also which
    module was at work at each peak. `cut_method`: the method is fitted to a short chain.
    """
    prompts = [PROMPT] * images
    with fake_gpu():
        policy = make_policy(recipe, knobs, precision, steps)
        scoring = HOST if knobs.rewards == "cpu" else GPU
        reward = build_weighted(recipe.reward, device=scoring, skeleton=True)
        held_out = build_weighted(recipe.evaluate.rewards, device=scoring, skeleton=True)
        ledger = Ledger(device=GPU, networks=_named(policy, reward) if paths else None)
        own_networks = recipe.method.own_bytes(policy.shape, recipe.sampler.steps)
        sizes = replace(enter(ledger, policy, reward, held_out), own_networks=own_networks)
        with ledger:
            gradients = Gradients(list(policy.trainable().values()), on_host=knobs.accumulators == "host")
            pieces = _Watched(gradients, ledger)
            eval_reward = WeightedReward([*reward.parts, *held_out.parts], device=reward.device)
            offload_idle(policy, eval_reward, knobs)
            method = recipe.method.shortened(steps) if cut_method else recipe.method
            # One rank of several differs from one alone in what it has to do, not in how.
            ranks = Ranks(0, 1, GPU)
            algorithm = build_method(method, reward, pieces, ranks, knobs, policy, skeleton=True)
            with ledger.phase("encode"), memory_tag("weights"):
                policy.encode(prompts)
            noise = BlankNoise(policy.shape)
            this_round = Round(Batch(range(images), prompts, images, noise, prompts), _Phases(ledger))
            experience = algorithm.collect(policy, this_round)
            for part in algorithm.updates(experience):
                algorithm.differentiate(policy, part)
            evaluation_bytes = _evaluation(ledger, policy, reward, eval_reward, knobs, evaluated) if evaluated else {}
        return Measured(
            images=images,
            work=method.workload(Chain(steps, len(policy.schedule.steps_with_density), images=images), knobs),
            peaks=ledger.peaks,
            flops=ledger.flops,
            recomputed_flops=ledger.recomputed_flops,
            kept_bytes=pieces.kept_bytes,
            without_graph_bytes=pieces.without_graph_bytes,
            sizes=sizes,
            evaluated_images=evaluated,
            evaluated=evaluation_bytes,
        )


def _evaluation(
    ledger: Ledger, policy: Policy, reward: WeightedReward, eval_reward: WeightedReward, knobs: Knobs, images: int
) -> Mapping[MemoryTag, int]:
    """Bytes at its peak beside the networks, which `knobs` leave where they are, and what was there before."""
    before = dict(ledger.live)
    with ledger.phase("evaluate"):
        score_evaluation(policy, reward, eval_reward, knobs, images)
    peak = ledger.peaks["evaluate"].categories
    return {category: peak[category] - before[category] for category in ("activations", "decoder", "reward")}


def score_evaluation(
    policy: Policy, reward: WeightedReward, eval_reward: WeightedReward, knobs: Knobs, images: int
) -> None:
    """The steps of memdiff.training.evaluate after its rollout, on one rank; a test holds their bytes to its own."""
    prompts = [PROMPT] * images
    x_0 = torch.empty(images, *policy.shape, dtype=policy.dtype).to(policy.device)
    with torch.no_grad(), decoding(policy, knobs):
        images_nCHW = policy.decode(x_0)
        with scoring(eval_reward, knobs):
            eval_reward.raw(images_nCHW, prompts)
            diversity(reward, images_nCHW, Ranks(0, 1, policy.device), num_images=images)
    to_uint8(images_nCHW)


def make_policy(recipe: Recipe, knobs: Knobs, precision: str, steps: int) -> Policy:
    """On the fake GPU, with a chain of `steps`; an adapter is active in all of them."""
    adapter = recipe.adapter.model_copy(update={"steps": None}) if recipe.adapter else None
    options = replace(model_options(recipe, knobs, precision=precision), adapter=adapter)
    return skeleton_policy(recipe.model, recipe.sampler.model_copy(update={"steps": steps}), options, device=GPU)


def enter(ledger: Ledger, policy: Policy, reward: WeightedReward, held_out: WeightedReward) -> Sizes:
    """Counts what was built before the ledger began."""
    unet, decoder = policy.networks["unet"], policy.networks.get("vae")
    encoders = [network for name, network in policy.networks.items() if name.startswith("text_encoder")]
    scoring = _networks(reward)
    ledger.enter(_tensors(unet), "weights")
    ledger.enter(_tensors(decoder) if decoder is not None else (), "decoder")
    ledger.enter((tensor for network in (*scoring, *_networks(held_out)) for tensor in _tensors(network)), "reward")
    trained = list(policy.trainable().values())
    channels, height, width = policy.shape
    return Sizes(
        unet=_bytes(unet),
        unet_trained=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        decoder=_bytes(decoder) if decoder is not None else 0,
        rewards=sum(_bytes(network) for network in scoring),
        held_out=sum(_bytes(network) for network in _networks(held_out)),
        encoders=sum(_bytes(encoder) for encoder in encoders),
        elements=sum(parameter.numel() for parameter in trained),
        largest_elements=max(parameter.numel() for parameter in trained),
        state_elements=channels * height * width,
    )


class _Phases(Clock):
    """The algorithm's own phases, told to a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(GPU)
        self._ledger = ledger

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with self._ledger.phase(name):
            yield


class _Watched(Pieces):
    """Pieces that note how many bytes of activations a step's graph holds between forward and pull."""

    def __init__(self, gradients: Gradients, ledger: Ledger) -> None:
        super().__init__(gradients)
        self._ledger, self.kept_bytes, self.without_graph_bytes = ledger, 0, 0
        self._none_yet = True

    def vjp(
        self, fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, Pull]:
        if self._none_yet and "rollout" in self._ledger.peaks:
            self._none_yet = False
            self.without_graph_bytes = self._ledger.peaks["rollout"].categories["activations"]
        before = self._ledger.live["activations"]
        y, pull = super().vjp(fn, x, **options)
        self.kept_bytes = max(self.kept_bytes, self._ledger.live["activations"] - before)
        return y, pull


def _named(policy: Policy, reward: WeightedReward) -> Mapping[str, torch.nn.Module]:
    scoring = {f"reward.{part.name}": network for part in reward.parts for network in part.reward.networks}
    return {**policy.networks, **scoring}


def _networks(reward: WeightedReward) -> list[torch.nn.Module]:
    return [network for part in reward.parts for network in part.reward.networks]


def _tensors(network: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(network: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(network))


def resident(knobs: Knobs, work: Workload, *, images: int) -> Knobs:
    """One piece of `images` images with everything on the GPU all the time, one step's graph kept where any can be."""
    plain = {name: knob.plain for name, knob in TABLE.items() if knob.choices and not knob.measured}
    pieces = {"micro_batch": images, "rollout_batch": images, "kept_steps": min(1, work.most_kept)}
    return knobs.model_copy(update=plain | pieces)
