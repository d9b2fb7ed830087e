"""What a tokenizer's limit does: longer prompts are told of, and folders that say nothing of it are read."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from memdiff.errors import ConfigError
from memdiff.models.load import load_policy, model_of
from memdiff.models.options import ModelOptions
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from tests.helpers.tiny import (
    CPU,
    tiny_sdxl,
    tiny_sdxl_pipeline,
    tiny_stable_diffusion,
    tiny_stable_diffusion_pipeline,
)

quiet_libraries()
MAKE: dict[str, Any] = {"sd": tiny_stable_diffusion, "sdxl": tiny_sdxl}
PIPELINES: dict[str, Any] = {"sd": tiny_stable_diffusion_pipeline, "sdxl": tiny_sdxl_pipeline}


@pytest.mark.parametrize("kind", MAKE)
def test_longer_prompts_are_told_of_once(kind: str, caplog: pytest.LogCaptureFixture):
    """Twelve tokens, begin and end among them: ten letters are read, and the rest of the first long one is shown."""
    policy = MAKE[kind]()
    with caplog.at_level(logging.WARNING):
        policy.warn_of_cuts(["abcdefghij", "a", "abcdefghijklm", "abcdefghijklm", "z" * 99])
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 of 4 prompts are longer than the 12 tokens that the text encoder reads, and are cut; of 'abcdefghijklm ...' "
        "it does not read 'klm'"
    )
    caplog.clear()
    policy.warn_of_cuts(["abcdefghij", ""])
    assert not caplog.records


@pytest.mark.parametrize("limit", [None, 512])
@pytest.mark.parametrize("kind", PIPELINES)
def test_the_encoders_own_limit_holds(kind: str, limit: int | None, tmp_path: Path):
    """tokenizer_config.json without model_max_length, or with more than the encoder has positions for."""
    PIPELINES[kind]().save_pretrained(tmp_path)
    expected = load_policy(model_of(str(tmp_path)), SamplerConfig(steps=3), ModelOptions(), device=CPU)
    for file in tmp_path.glob("tokenizer*/tokenizer_config.json"):
        config = json.loads(file.read_text())
        config.pop("model_max_length")
        file.write_text(json.dumps(config | ({} if limit is None else {"model_max_length": limit})))
    policy: Any = load_policy(model_of(str(tmp_path)), SamplerConfig(steps=3), ModelOptions(), device=CPU)
    x, texts = torch.randn(1, 4, 8, 8), ["abcdefghijklm"]
    with torch.no_grad():
        for each in (policy, expected):
            each.encode(texts)
        assert torch.equal(policy.mean(x, [0], texts), expected.mean(x, [0], texts))
    policy.save(tmp_path / "saved", {name: weight.detach() for name, weight in policy.trainable().items()})
    for file in (tmp_path / "saved").glob("tokenizer*/tokenizer_config.json"):
        assert json.loads(file.read_text())["model_max_length"] == 12


@pytest.mark.parametrize("kind", MAKE)
def test_a_tokenizer_of_another_model_is_told(kind: str):
    """Tokens beyond the encoder's table, or more of them than it has positions for."""

    def another(tokens: int, largest: int) -> Any:
        def tokenizer(texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.full((len(texts), tokens), largest)}

        return tokenizer

    for tokens, largest in ((12, 10**6), (500, 1)):
        policy: Any = MAKE[kind]()
        policy.text._encoders = [(another(tokens, largest), encoder) for _, encoder in policy.text._encoders]
        for tokenizer, _ in policy.text._encoders:
            tokenizer.model_max_length = 12
        with pytest.raises(ConfigError, match="a text encoder with the tokenizer beside it can't be used") as caught:
            policy.encode(["a prompt of its own"])
        assert "\n" not in str(caught.value)
