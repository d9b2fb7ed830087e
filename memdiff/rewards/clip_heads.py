"""Heads on CLIP's image embedding: affine layers (LAION aesthetic), or the cosine to the prompt's.

Shapes: B images of one call, D of the embeddings.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPTextModelWithProjection, CLIPTokenizer

from memdiff.errors import RewardError
from memdiff.rewards.families_config import AestheticConfig, ClipSimilarityConfig, HpsConfig, PickScoreConfig
from memdiff.rewards.pretrained import fill_positions, freeze, has_tokenizer, load_tokenizer
from memdiff.rewards.weights import find_weights, load_weights
from memdiff.runtime.placement import upload
from memdiff.runtime.state_dicts import assign_strictly

# Both repositories of weights hold no tokenizer (HPSv2) or were published with this one's (PickScore's model card).
USUAL_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

Head = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]  # (e_BD, prompts) -> B


class AestheticHead(torch.nn.Module):
    """Five affine layers, in fp32 whatever the network runs in. Keys layers.0, 2, 4, 6, 7: dropout stood between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        linear, gap = torch.nn.Linear, torch.nn.Identity
        self.layers = torch.nn.Sequential(
            linear(width, 1024), gap(), linear(1024, 128), gap(), linear(128, 64), gap(), linear(64, 16), linear(16, 1)
        )

    def forward(self, e_BD: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """B scores; prompts are not looked at."""
        del prompts
        return self.layers(e_BD).squeeze(-1)


class PromptHead:
    """scale * e . t. The text network stays on the host in fp32 and runs once a prompt: its embeddings are kept."""

    def __init__(
        self,
        text: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        *,
        scale: float,
        prompt: str | None,
        name: str,
    ) -> None:
        self.text, self.tokenizer, self.scale, self.prompt, self.name = text, tokenizer, scale, prompt, name
        # Python numbers, not tensors: a plan calls this under fake tensors, and those must not outlive it.
        self._kept: dict[str, list[float]] = {}

    def __call__(self, e_BD: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """B scores. Raises RewardError for an empty prompt."""
        wanted = [self.prompt] * len(e_BD) if self.prompt is not None else prompts
        if len(wanted) != len(e_BD):
            raise RewardError(f"reward {self.name} needs one prompt an image, got {len(wanted)} for {len(e_BD)} images")
        t_BD = torch.tensor([self.embedding(prompt) for prompt in wanted], dtype=torch.float32)
        return self.scale * (e_BD * upload(t_BD, e_BD.device)).sum(dim=-1)

    def embedding(self, prompt: str) -> list[float]:
        """t_D. A prompt is encoded by itself: without padding there is nothing for padding to change."""
        if not prompt.strip():
            raise RewardError(
                f"reward {self.name} compares images with text, got an empty prompt; give the part a `prompt`"
            )
        if prompt not in self._kept:
            length = self.text.config.max_position_embeddings
            ids = self.tokenizer(prompt, truncation=True, max_length=length)["input_ids"]
            with torch.no_grad(), unset_fake_temporarily():  # the host's own arithmetic, also while a plan is made
                self._kept[prompt] = normalize(self.text(input_ids=torch.tensor([ids])).text_embeds[0], dim=-1).tolist()
        return self._kept[prompt]


def load_aesthetic_head(part: AestheticConfig, width: int) -> AestheticHead:
    """The head from its own file, on the host. Raises ConfigError in one line."""
    path = find_weights(part.head, part.head_file, part.head_revision)
    with torch.device("meta"):
        head = AestheticHead(width)
    assign_strictly(head, load_weights(path), str(path))
    return head


def load_prompt_head(
    part: PickScoreConfig | HpsConfig | ClipSimilarityConfig,
    config: CLIPConfig,
    tensors: dict[str, torch.Tensor],
    scale: float,
) -> PromptHead:
    """The head with its text network and tokenizer, on the host. Raises ConfigError in one line."""
    text_config: Any = config.text_config
    text_config.projection_dim = config.projection_dim
    with torch.device("meta"):
        text = CLIPTextModelWithProjection(text_config)
    assign_strictly(text, tensors, part.path)
    fill_positions(text)
    freeze(text, torch.float32, torch.device("cpu"))
    source, revision = part.tokenizer, None
    if source is None and (has_tokenizer(part.path) or isinstance(part, ClipSimilarityConfig)):
        source, revision = part.path, part.revision
    tokenizer = load_tokenizer(source or USUAL_TOKENIZER, revision=revision)
    return PromptHead(text, tokenizer, scale=scale, prompt=part.prompt, name=part.name or part.kind)


def any_prompt(e_BD: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """A skeleton's head: what `PromptHead` computes, with every embedding zero."""
    t_BD = torch.zeros(len(prompts), e_BD.shape[1])
    return (e_BD * upload(t_BD, e_BD.device)).sum(dim=-1)
