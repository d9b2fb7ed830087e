"""What the pieces of one way of recomputing need, as functions of their rows, from measured short rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from memdiff.planner.measured import Measured, Sizes
from memdiff.runtime.memory_tags import MemoryTag

TRANSIENT: tuple[MemoryTag, ...] = ("weights", "activations", "decoder", "reward")


@dataclass(frozen=True)
class Curve:
    """Bytes by rows, through measured points: exact at them, proportional where there is one.

    A piece's peak is the larger of several straight lines (at few rows the gradients of the weights, at many the
    activations). Elsewhere the line through the two largest points is followed, and never below a smaller point: that
    is a guess from below, so a plan measures what it chooses.
    """

    points: tuple[tuple[int, int], ...]  # (rows, bytes), rows rising

    def at(self, rows: float) -> int:
        """Never less than nothing."""
        return _at(self.points, rows)


@cache  # a plan of thousands of settings asks at some fifty numbers of rows
def _at(points: tuple[tuple[int, int], ...], rows: float) -> int:
    if len(points) == 1:
        return max(0, round(points[0][1] * rows / points[0][0]))
    (n, low), (m, high) = points[-2:]
    line = round(low + (high - low) * (rows - n) / (m - n))
    known = dict(points).get(rows)  # pyright: ignore[reportArgumentType]
    return known if known is not None else max(0, line, *(size for less, size in points if less < rows))


@dataclass(frozen=True)
class PieceCosts:
    """What the pieces of one way of recomputing need, from measured rounds of one or two sizes."""

    sizes: Sizes
    transient: Mapping[str, Mapping[MemoryTag, Curve]]  # by phase
    evaluation: Mapping[MemoryTag, Curve]  # over its images; empty where none was measured
    kept: Curve  # one step's graph between forward and pull
    modules: Mapping[str, str]  # at work at each phase's peak
    forward: float  # FLOPs of one step of one image
    pull: float  # of its backward, nothing recomputed
    again: float  # of what checkpoints run again in it
    scoring: float  # of decoding and scoring one image, and back where the method does
    scoring_again: float

    def are_measured_at(self, rows: int) -> bool:
        """Whether these costs are more than a guess there: measured, or proportional to the rows."""
        return len(self.kept.points) == 1 or any(rows == measured for measured, _ in self.kept.points)

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> "PieceCosts":
        """`measured` differ in their images only."""
        first = measured[0]
        sizes = first.sizes
        baseline = {"weights": sizes.unet, "activations": 0, "decoder": sizes.decoder}
        baseline |= {"reward": sizes.rewards + sizes.held_out}  # held-out ones are there while others score and train
        transient: dict[str, dict[MemoryTag, Curve]] = {
            phase: {
                category: Curve(
                    tuple((m.images, m.peaks[phase].categories[category] - baseline[category]) for m in measured)
                )
                for category in TRANSIENT
            }
            for phase in ("rollout", "reward", "train")
        }
        # Texts are encoded a fixed number at a time.
        encoding = first.peaks["encode"].categories["weights"] - first.sizes.unet
        transient["encode"] = {"weights": Curve(((1, encoding), (2, encoding)))}
        transient["rollout without a graph"] = {
            "activations": Curve(tuple((m.images, m.without_graph_bytes) for m in measured))
        }
        images, work = first.images, first.work
        forward = first.flops["rollout"] / images / work.rolled
        trained, again = first.flops["train"] / images, first.recomputed_flops.get("train", 0) / images
        # Of the steps whose forward is made again it is part of that phase, beside a policy gradient's only one.
        forwards = work.again * forward
        return cls(
            sizes=first.sizes,
            transient=transient,
            evaluation=next((_evaluation(m) for m in measured if m.evaluated_images), {}),
            kept=Curve(tuple((m.images, m.kept_bytes) for m in measured)),
            modules={phase: peak.module for phase, peak in first.peaks.items()},
            forward=forward,
            pull=(trained - again - forwards) / work.pulled,
            again=again / work.pulled,
            scoring=first.flops.get("reward", 0) / images,
            scoring_again=first.recomputed_flops.get("reward", 0) / images,
        )


def _evaluation(measured: Measured) -> Mapping[MemoryTag, Curve]:
    """Proportional to the images: it is measured at as many as there are, up to a limit."""
    return {category: Curve(((measured.evaluated_images, size),)) for category, size in measured.evaluated.items()}
