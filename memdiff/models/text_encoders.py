"""Prompts to what a denoiser is conditioned on: encoded once, kept in host memory.

Shapes: B rows, L tokens, D of a token, P of a pooled embedding, I size numbers (SDXL).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from memdiff.runtime.fixed_batches import fixed_batches
from memdiff.runtime.placement import HOST, cast_and_place, place, upload
from memdiff.runtime.state_dicts import told_in_one_line

_log = logging.getLogger(__name__)

ENCODE_BATCH = 8  # texts encoded at once, always this many: an embedding does not depend on its neighbours


@dataclass(frozen=True)
class Conditioning:
    """What a UNet2DConditionModel takes beside x_t and the timestep, on its device. SDXL alone has the last two."""

    tokens_BLD: torch.Tensor
    pooled_BP: torch.Tensor | None = None
    sizes_BI: torch.Tensor | None = None

    def followed_by(self, other: "Conditioning") -> "Conditioning":
        """The rows of both."""
        return Conditioning(
            torch.cat([self.tokens_BLD, other.tokens_BLD]),
            joined(self.pooled_BP, other.pooled_BP),
            joined(self.sizes_BI, other.sizes_BI),
        )

    def arguments(self) -> dict[str, Any]:
        """As the UNet's keyword arguments."""
        if self.pooled_BP is None:
            return {"encoder_hidden_states": self.tokens_BLD}
        added = {"text_embeds": self.pooled_BP, "time_ids": self.sizes_BI}
        return {"encoder_hidden_states": self.tokens_BLD, "added_cond_kwargs": added}


def joined(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    """The rows of both, None where there are none."""
    return None if first is None or second is None else torch.cat([first, second])


class TextEncoders:
    """One CLIP text encoder (Stable Diffusion: its last hidden state), or SDXL's two.

    SDXL: the penultimate hidden states of both side by side, and the second's projected pooled embedding. `negative`
    stands in the empty prompt's place; `zero_without` makes its embedding zero where it is None.
    """

    def __init__(
        self,
        encoders: Sequence[tuple[Any, torch.nn.Module]],  # (tokenizer, encoder), on the host
        *,
        device: torch.device,
        dtype: torch.dtype,
        penultimate: bool,
        negative: str | None = None,
        zero_without: bool = False,
    ) -> None:
        self.device, self.dtype, self.penultimate = device, dtype, penultimate
        self.negative, self._zero_negative = negative or "", negative is None and zero_without
        self._encoders = encoders
        for tokenizer, encoder in encoders:
            encoder.requires_grad_(False).eval()
            if device == HOST:
                encoder.to(dtype)
            # Some folders say nothing of it, which transformers takes for 1e30. A saved pipeline gets it right.
            positions = int(getattr(encoder.config, "max_position_embeddings", tokenizer.model_max_length))
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        self._known: dict[str, Conditioning] = {}  # one row each, on the host
        self._rows: tuple[tuple[str, ...], Conditioning] | None = None  # the last answer: a chain asks K times for it

    def encode(self, texts: Sequence[str]) -> None:
        """Embeddings of the texts that are new, of the negative one and of the empty one.

        Raises ConfigError where a tokenizer gives what its encoder does not take.
        """
        missing = [text for text in dict.fromkeys(("", self.negative, *texts)) if text not in self._known]
        if not missing:
            return
        with torch.no_grad(), self._on_device(), told_in_one_line("a text encoder with the tokenizer beside it"):
            for batch, count in fixed_batches(missing, ENCODE_BATCH):
                tokens_BLD, pooled_BP = (None if x is None else place(x, HOST) for x in self._run(batch))
                assert tokens_BLD is not None
                for row in range(count):
                    pooled = None if pooled_BP is None else pooled_BP[row : row + 1].clone()
                    self._known[batch[row]] = Conditioning(tokens_BLD[row : row + 1].clone(), pooled)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """While it lasts the encoders are on the device, in their dtype. Their weights on the host, which may be pages
        of a mapped file, wait untouched: what leaves the device is dropped."""
        if self.device == HOST:
            yield
            return
        waiting = {id(weight): weight.detach() for _, encoder in self._encoders for weight in encoder.parameters()}
        for _, encoder in self._encoders:
            cast_and_place(encoder, self.dtype, self.device)
        try:
            yield
        finally:
            for _, encoder in self._encoders:
                encoder._apply(lambda tensor: waiting[id(tensor)] if id(tensor) in waiting else place(tensor, HOST))

    def warn_of_cuts(self, texts: Sequence[str]) -> None:
        """One line where texts are longer than a tokenizer's limit: how many, and what is cut off the first of them."""
        for tokenizer, _ in self._encoders:
            most = int(tokenizer.model_max_length)
            cut = {}
            for text in dict.fromkeys(texts):
                if len(text.encode()) > most - 2:  # a token has a byte or more, and two are begin and end
                    ids = tokenizer([text], verbose=False)["input_ids"][0]
                    if len(ids) > most:
                        cut[text] = tokenizer.decode(ids[most - 1 : -1])
            if cut:
                text, rest = next(iter(cut.items()))
                _log.warning(
                    "%d of %d prompts are longer than the %d tokens that the text encoder reads, and are cut; of %r it "
                    "does not read %r",
                    len(cut), len(set(texts)), most, f"{text[:40]} ...", rest[:200],
                )  # fmt: skip
                return

    def rows(self, texts: Sequence[str]) -> Conditioning:
        """Of encoded texts, one row each, on the device."""
        key = tuple(texts)
        if self._rows is None or self._rows[0] != key:
            known = [self._known[text] for text in texts]
            pooled = [row.pooled_BP for row in known if row.pooled_BP is not None]
            self._rows = (
                key,
                Conditioning(
                    upload(torch.cat([row.tokens_BLD for row in known]), self.device),
                    upload(torch.cat(pooled), self.device) if pooled else None,
                ),
            )
        return self._rows[1]

    def without_prompt(self, like: Conditioning) -> Conditioning:
        """The unconditional rows beside those of `like`."""
        if self._zero_negative:
            pooled = None if like.pooled_BP is None else torch.zeros_like(like.pooled_BP)
            return replace(like, tokens_BLD=torch.zeros_like(like.tokens_BLD), pooled_BP=pooled)
        row, count = self._known[self.negative], len(like.tokens_BLD)
        pooled = None if row.pooled_BP is None else upload(row.pooled_BP, self.device).expand(count, -1)
        return replace(like, tokens_BLD=upload(row.tokens_BLD, self.device).expand(count, -1, -1), pooled_BP=pooled)

    def _run(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens, pooled = [], None
        for tokenizer, encoder in self._encoders:
            inputs: Mapping[str, torch.Tensor] = tokenizer(
                texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            )
            ids = place(inputs["input_ids"], self.device)
            config: Any = encoder.config
            if not self.penultimate:
                # Some SD 2.x folders ask for the mask; CLIP's own text models are causal and need none.
                masked = getattr(config, "use_attention_mask", False)
                mask = place(inputs["attention_mask"], self.device) if masked else None
                tokens.append(encoder(ids, attention_mask=mask)[0])
                continue
            output = encoder(ids, output_hidden_states=True)
            tokens.append(output.hidden_states[-2])
            if output[0].ndim == 2:  # text_embeds: the encoder has a projection
                pooled = output[0]
        return torch.cat(tokens, dim=-1), pooled
