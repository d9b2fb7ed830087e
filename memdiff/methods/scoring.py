"""From x_0 to the loss and back: decoder and rewards as pieces, one graph alive at a time.

    loss_i = -scale r_i                     plain ascent
    loss_i = scale max(target - r_i, 0)     bounded: an image that has reached the target is left alone
    r_i = sum_p w_p f_p(image_i)   f_p the part's score; a normalised one in units of its std over earlier rounds

The rewards' costates on the images are made first, chunk by chunk and network by network, each chunk's graph pulled
before the next is made; then the decoder is run again with its graph, some images at a time, and pulled with them. What
is recomputed is one forward of the decoder: a hundredth of a guided chain of 50 steps.

Shapes: B rows of a micro-batch, C H W of x_0, c h w of images, P reward parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memdiff.errors import ConfigError, RewardError
from memdiff.memory.knobs import Knobs
from memdiff.memory.offload import decoding, scoring
from memdiff.models.policy import Policy
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward, in_order, refuse_non_finite, score_parts
from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import place
from memdiff.runtime.vjp import Pieces


@dataclass(frozen=True)
class Rows:
    """One micro-batch: image numbers in the round and their prompts, filled up to one shape; `count` rows are valid.

    `starts` are the steps at which their gradients begin. `weight` is what the loss of each of them counts in the sum
    that is differentiated.
    """

    images: Sequence[int]
    prompts: Sequence[str]
    starts: Sequence[int]
    count: int
    weight: float

    def weights(self, like: torch.Tensor) -> torch.Tensor:
        """`weight` for the valid rows, 0 for the filling: B, of the type and on the device of `like`."""
        weight_B = like.new_zeros(len(self.images))
        weight_B[: self.count] = self.weight
        return weight_B


@dataclass(frozen=True)
class Scored:
    """A micro-batch's images, raw scores, and d (sum of weighted losses) / d x_0."""

    images_BCHW: torch.Tensor
    raw_PB: torch.Tensor
    costate_BCHW: torch.Tensor


class Scoring:
    """Scores x_0 and pulls the loss back to it."""

    def __init__(
        self, reward: WeightedReward, pieces: Pieces, knobs: Knobs, *, target: float | None = None, scale: float = 1.0
    ) -> None:
        self.reward, self.pieces, self.knobs, self.target, self.scale = reward, pieces, knobs, target, scale

    def pull_back(self, policy: Policy, x_0_BCHW: torch.Tensor, rows: Rows) -> Scored:
        """Adds nothing to the gradients where neither decoder nor rewards are trained, as is usual."""
        with decoding(policy, self.knobs):
            return self._pull_back(policy, x_0_BCHW, rows)

    def _pull_back(self, policy: Policy, x_0_BCHW: torch.Tensor, rows: Rows) -> Scored:
        size = max(1, self.knobs.decode_batch)
        with torch.no_grad():
            images_BCHW = torch.cat([policy.decode(x_BCHW) for x_BCHW in x_0_BCHW.split(size)])
        with scoring(self.reward, self.knobs):
            raw_PB, d_images_BCHW = self._rewards(place(images_BCHW, self.reward.device), rows)
        d_images_BCHW = place(d_images_BCHW, policy.device)
        costates = []
        for x_BCHW, d_BCHW in zip(x_0_BCHW.split(size), d_images_BCHW.split(size), strict=True):
            _, pull = self.pieces.vjp(policy.decode, x_BCHW.detach().requires_grad_(), keep=True)
            costates.append(pull(d_BCHW))
        return Scored(images_BCHW, place(raw_PB, policy.device), torch.cat(costates))

    def _rewards(self, images_BCHW: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """(raw_PB, d loss / d images), both where the rewards run."""
        slopes, weight_B = self.reward.slopes(), self.scale * rows.weights(images_BCHW)
        if self.target is not None and len(self.reward.parts) > 1:
            # Which images are below the target is known only once every part has scored them.
            with torch.no_grad():
                raw_PB = self.reward.raw(images_BCHW, rows.prompts)
            self._refuse(raw_PB, self.reward.names, rows)
            weight_B = weight_B * self._below(raw_PB)
        scores: dict[int, torch.Tensor] = {}
        d_images_BCHW = torch.zeros_like(images_BCHW)
        for numbers, parts in self.reward.groups:
            raw = []
            for start in range(0, len(images_BCHW), parts[0].chunk):
                stop = min(start + parts[0].chunk, len(images_BCHW))
                raw_pb, pull = self.pieces.vjp(
                    lambda x, parts=parts, texts=rows.prompts[start:stop]: _score(parts, x, texts),
                    images_BCHW[start:stop].detach().requires_grad_(),
                    keep=True,
                )
                self._refuse(raw_pb, [part.name for part in parts], rows, start)
                d_raw_pb = torch.stack([-slopes[number] * weight_B[start:stop] for number in numbers])
                if self.target is not None and len(self.reward.parts) == 1:
                    d_raw_pb = d_raw_pb * self._below(raw_pb)
                gradient = pull(d_raw_pb.to(raw_pb.dtype))
                assert gradient is not None
                d_images_BCHW[start:stop] += gradient
                raw.append(raw_pb)
            scores |= dict(zip(numbers, torch.cat(raw, dim=1), strict=True))
        return in_order(scores), d_images_BCHW

    def loss(self, rewards_N: torch.Tensor) -> torch.Tensor:
        """The mean of the images' losses: a scalar."""
        losses_N = -rewards_N if self.target is None else (self.target - rewards_N).clamp(min=0)
        return self.scale * losses_N.mean()

    def _below(self, raw_PB: torch.Tensor) -> torch.Tensor:
        """1 where an image's reward is below the target, else 0: B."""
        assert self.target is not None
        return (self.reward.combine(raw_PB, self.reward.statistics) < self.target).to(raw_PB.dtype)

    def _refuse(self, raw_PB: torch.Tensor, names: Sequence[str], rows: Rows, start: int = 0) -> None:
        if not self.pieces.are_finite([raw_PB]):
            refuse_non_finite(raw_PB, names, rows.prompts[start:], rows.images[start:])


def _score(parts: Sequence[WeightedPart], images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Checked scores from one forward: p B. RewardError where they carry no gradient though one is asked for."""
    with memory_tag("reward"):
        raw_pB = score_parts(parts, images_BCHW, prompts, chunk=len(images_BCHW))
    if torch.is_grad_enabled() and not raw_pB.requires_grad:  # those of one backbone have one, all of them
        raise RewardError(
            f"reward {parts[0].name} must return scores with a gradient to the images, got a tensor without one; "
            "compute it with torch operations and without detach or no_grad, or use method.kind: reinforce"
        )
    return raw_pB


def refuse_without_gradient(reward: WeightedReward, method: str) -> None:
    """ConfigError naming the first part that gradients do not flow through."""
    for part in reward.parts:
        if not part.reward.differentiable or part.target_share is not None:
            raise ConfigError(
                f"reward {part.name} has no gradient, which method.kind {method} needs; choose a differentiable form "
                "of it, or method.kind: reinforce, which takes every reward"
            )
