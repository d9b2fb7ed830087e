"""What a short round on fake tensors came to: bytes, FLOPs and sizes, as they are kept between starts. No torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memdiff.memory.peak import Peak
from memdiff.methods.workload import Workload
from memdiff.runtime.memory_tags import MemoryTag

# Visits of the phase "reward".
WITH_GRAPH, WITHOUT_GRAPH = "reward with a graph", "reward without a graph"
VISITS = (WITH_GRAPH, WITHOUT_GRAPH)


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
    noisy_to_the_end: bool = False  # the schedule's last step has a density too


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
    scored: Mapping[str, Peak]  # the phase "reward" with a step's kept graph there and without one

    def to_json(self) -> dict[str, Any]:
        """Numbers and texts alone."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Measured":
        """What `to_json` gave. Raises KeyError or TypeError for anything else."""
        parts = {
            "work": Workload(**stored["work"]),
            "peaks": {phase: Peak(**peak) for phase, peak in stored["peaks"].items()},
            "scored": {visit: Peak(**peak) for visit, peak in stored["scored"].items()},
            "sizes": Sizes(**stored["sizes"]),
        }
        return cls(**{**stored, **parts})

    def with_images_of(self, whole: "Measured") -> "Measured":
        """With what decoding and scoring took in another way's round of as many images; its own were blank.

        The ways differ in the UNet alone. Of it there is one step's kept graph while a micro-batch is decoded and
        scored, and nothing where all images are scored at once.
        """
        kept = self.kept_bytes - whole.kept_bytes
        scored = [
            _with(peak, "activations", kept if visit == WITH_GRAPH else 0) for visit, peak in whole.scored.items()
        ]
        rewards = {"reward": whole.sizes.rewards}  # which were not there
        peaks = {phase: replace(peak, categories={**peak.categories, **rewards}) for phase, peak in self.peaks.items()}
        peaks |= {"encode": whole.peaks["encode"], "reward": max(scored, key=lambda peak: peak.bytes)}
        return replace(
            self,
            peaks=peaks,
            flops={**self.flops, "reward": whole.flops.get("reward", 0)},
            recomputed_flops={**self.recomputed_flops, "reward": whole.recomputed_flops.get("reward", 0)},
            sizes=whole.sizes,
            evaluated_images=whole.evaluated_images,
            evaluated=whole.evaluated,
        )


def _with(peak: Peak, category: MemoryTag, more: int) -> Peak:
    categories = {**peak.categories, category: peak.categories[category] + more}
    return replace(peak, bytes=peak.bytes + more, categories=categories)
