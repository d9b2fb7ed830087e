"""Scores of many images: in chunks, checked, those of one backbone from one forward of it.

Shapes: B images of one call, C channels (1 or 3), H W pixels.
"""

from collections.abc import Sequence

import torch

from memdiff.errors import RewardError
from memdiff.models.batches_that_fit import batches_that_fit
from memdiff.processes import landmarks
from memdiff.rewards.backbones import Headed
from memdiff.rewards.reward import Reward, checked
from memdiff.runtime.half_precision import widen


def score(reward: Reward, images_BCHW: torch.Tensor, prompts: Sequence[str], *, chunk: int, name: str) -> torch.Tensor:
    """B rewards in chunks of at most `chunk` images, checked: a mistake is a RewardError that names the reward.

    fp32, whatever the reward returns; fp64 for images in fp64. Without a graph, a chunk that memory runs out in is made
    again in halves.
    """
    return score_together([reward], images_BCHW, prompts, chunk=chunk, names=[name])[0]


def score_together(
    rewards: Sequence[Reward],
    images_BCHW: torch.Tensor,
    prompts: Sequence[str],
    *,
    chunk: int,
    names: Sequence[str],
) -> torch.Tensor:
    """The same of rewards with one backbone (`of_one_backbone`), which is run once a chunk: one row a reward, P B."""
    name = ", ".join(names)

    def score_chunk(rows: list[int], count: int) -> torch.Tensor:
        here = slice(rows[0], rows[0] + count)
        images, texts = images_BCHW[here], prompts[here]
        version = images._version
        with landmarks.at(f"reward {name}"):
            results = _results(rewards, images, texts)
        if images._version != version:
            raise RewardError(
                f"reward {name} wrote into the images it was given, which others see too; clone them first"
            )
        dtype = widen(images[:0]).dtype
        named = zip(results, names, strict=True)
        return torch.stack([checked(result, count=len(images), name=each, dtype=dtype) for result, each in named])

    rows = range(len(images_BCHW))
    if torch.is_grad_enabled():  # a graph of halves takes as much: the caller's piece is made again
        parts = [score_chunk(list(some), len(some)) for some in (rows[i : i + chunk] for i in rows[::chunk])]
    else:
        parts = list(batches_that_fit(rewards[0], f"reward {name}", rows, min(chunk, len(rows)), score_chunk))
    return torch.cat(parts, dim=1) if parts else images_BCHW.new_zeros(len(rewards), 0, dtype=torch.float32)


def _results(rewards: Sequence[Reward], images: torch.Tensor, prompts: Sequence[str]) -> list[object]:
    """What each returned, not yet checked."""
    first = rewards[0]
    if len(rewards) == 1 or not isinstance(first, Headed):
        return [reward(images, prompts) for reward in rewards]
    outputs = first.backbone(images)
    return [reward.head(outputs, prompts) for reward in rewards if isinstance(reward, Headed)]
