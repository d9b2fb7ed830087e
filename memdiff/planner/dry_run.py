"""One short round of a recipe's own algorithm on fake tensors: peaks and FLOPs by phase.

The chain is cut to two steps: one whose graph is kept where the method keeps any, and one that is made again. Peaks
don't depend on the number of steps but by the stored states and the kept graphs, which `compose` adds.

Shapes: B images of the round.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from memdiff.memory.knobs import Knobs
from memdiff.memory.offload import decoding, offload_idle, scoring
from memdiff.memory.peak import Peak
from memdiff.methods.build import build_method
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.workload import Chain
from memdiff.models.config import takes_prompts
from memdiff.models.load import skeleton_policy
from memdiff.models.pixels import to_uint8
from memdiff.models.policy import Policy
from memdiff.planner.blank import blank_policy, blank_reward
from memdiff.planner.fake_tensors import GPU, BlankNoise, fake_gpu
from memdiff.planner.ledger import Ledger
from memdiff.planner.measured import VISITS, WITH_GRAPH, WITHOUT_GRAPH, Measured, Sizes
from memdiff.recipe.model_options import model_options
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.build import build_weighted
from memdiff.rewards.guards import diversity
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.memory_tags import MemoryTag, memory_tag
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces, Pull

STEPS = 2
PROMPT = "a"


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
    blank: bool = False,
) -> Measured:
    """Runs `collect`, `updates` and `differentiate` on `images` images and a chain of `steps`.

    `evaluated`: images of an evaluation that is scored afterwards, with everything on the GPU. `paths`: also which
    module was at work at each peak. `cut_method`: the method is fitted to a short chain. `blank`: images are neither
    decoded nor scored, for `Measured.with_images_of` another round's.
    """
    prompts = [PROMPT] * images
    with fake_gpu() as gpu:
        policy = make_policy(recipe, knobs, precision, steps)
        scoring = HOST if knobs.rewards == "cpu" else GPU
        if blank:
            blank_policy(policy)
        reward, held_out = _rewards(recipe, scoring, blank=blank)
        ledger = Ledger(device=GPU, networks=_named(policy, reward) if paths else None, run=gpu.answer)
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
            this_round = Round(Batch(range(images), prompts, images, noise, prompts), _Phases(ledger, pieces))
            experience = algorithm.collect(policy, this_round)
            for part in algorithm.updates(experience):
                algorithm.differentiate(policy, part)
            evaluation_bytes = _evaluation(ledger, policy, reward, eval_reward, knobs, evaluated) if evaluated else {}
        return Measured(
            images=images,
            work=method.workload(Chain(steps, len(policy.schedule.steps_with_density), images=images), knobs),
            peaks=_whole_peaks(ledger.peaks),
            scored={visit: peak for visit, peak in ledger.peaks.items() if visit in VISITS},
            flops=_whole_sums(ledger.flops),
            recomputed_flops=_whole_sums(ledger.recomputed_flops),
            kept_bytes=pieces.kept_bytes,
            without_graph_bytes=pieces.without_graph_bytes,
            sizes=sizes,
            evaluated_images=evaluated,
            evaluated=evaluation_bytes,
        )


def _rewards(recipe: Recipe, device: torch.device, *, blank: bool) -> tuple[WeightedReward, WeightedReward]:
    """The reward, and what an evaluation asks for besides."""
    if blank:
        return blank_reward(recipe.reward, device), WeightedReward([], device=device)
    reward = build_weighted(recipe.reward, device=device, skeleton=True)
    return reward, build_weighted(recipe.evaluate.rewards, device=device, skeleton=True)


def import_all(recipe: Recipe, *, scored: bool) -> None:
    """The modules that are imported where a recipe asks for them; `scored`: those of its rewards as well.

    Raises ConfigError as measuring does.
    """
    if takes_prompts(recipe.model):
        import_module("memdiff.models.latent_files")
    if scored:
        with fake_gpu():
            build_weighted([*recipe.reward, *recipe.evaluate.rewards], device=GPU, skeleton=True)


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
    scoring = reward.networks
    ledger.enter(_tensors(unet), "weights")
    ledger.enter(_tensors(decoder) if decoder is not None else (), "decoder")
    ledger.enter((tensor for network in (*scoring, *held_out.networks) for tensor in _tensors(network)), "reward")
    trained = list(policy.trainable().values())
    channels, height, width = policy.shape
    return Sizes(
        unet=_bytes(unet),
        unet_trained=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        decoder=_bytes(decoder) if decoder is not None else 0,
        rewards=sum(_bytes(network) for network in scoring),
        held_out=sum(_bytes(network) for network in held_out.networks),
        encoders=sum(_bytes(encoder, policy.dtype) for encoder in encoders),
        elements=sum(parameter.numel() for parameter in trained),
        largest_elements=max(parameter.numel() for parameter in trained),
        state_elements=channels * height * width,
        noisy_to_the_end=policy.schedule.steps - 1 in policy.schedule.steps_with_density,
    )


def _whole_peaks(peaks: Mapping[str, Peak]) -> dict[str, Peak]:
    """With the larger of both visits as the phase's own."""
    phases = {name: peak for name, peak in peaks.items() if name not in VISITS}
    visits = [peaks[visit] for visit in VISITS if visit in peaks]
    return {**phases, **({"reward": max(visits, key=lambda peak: peak.bytes)} if visits else {})}


def _whole_sums(flops: Mapping[str, int]) -> dict[str, int]:
    """With both visits' sum in the place of each."""
    phases = {name: count for name, count in flops.items() if name not in VISITS}
    scored = sum(flops.get(visit, 0) for visit in VISITS)
    return {**phases, **({"reward": scored} if scored else {})}


class _Watched(Pieces):
    """Pieces that note how many bytes of activations a step's graph holds between forward and pull."""

    def __init__(self, gradients: Gradients, ledger: Ledger) -> None:
        super().__init__(gradients)
        self.notes_answers = False  # nothing overflows without numbers, and the flags of `noted` are five bytes
        self._ledger, self.kept_bytes, self.without_graph_bytes = ledger, 0, 0
        self._none_yet = True
        self.costs = 0  # built and not yet pulled

    def vjp(
        self, fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, Pull]:
        if self._none_yet and "rollout" in self._ledger.peaks:
            self._none_yet = False
            self.without_graph_bytes = self._ledger.peaks["rollout"].categories["activations"]
        before = self._ledger.live["activations"]
        y, pull = super().vjp(fn, x, **options)
        self.kept_bytes = max(self.kept_bytes, self._ledger.live["activations"] - before)
        self.costs += 1

        def pull_and_count(dy: torch.Tensor) -> torch.Tensor | None:
            self.costs -= 1
            return pull(dy)

        return y, pull_and_count


class _Phases(Clock):
    """The algorithm's own phases, told to a ledger."""

    def __init__(self, ledger: Ledger, pieces: _Watched) -> None:
        super().__init__(GPU)
        self._ledger, self._pieces = ledger, pieces

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if name == "reward":
            name = WITH_GRAPH if self._pieces.costs else WITHOUT_GRAPH
        with self._ledger.phase(name):
            yield


def _named(policy: Policy, reward: WeightedReward) -> Mapping[str, torch.nn.Module]:
    scoring: dict[str, torch.nn.Module] = {}
    for part in reward.parts:  # one that several parts read has the first's name
        new = [network for network in part.reward.networks if network not in scoring.values()]
        scoring |= {f"reward.{part.name}": network for network in new}
    return {**policy.networks, **scoring}


def _tensors(network: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(network: torch.nn.Module, dtype: torch.dtype | None = None) -> int:
    """As it stands, or with its floats in `dtype`."""
    return sum(
        tensor.numel() * (dtype.itemsize if dtype is not None and tensor.is_floating_point() else tensor.element_size())
        for tensor in _tensors(network)
    )
