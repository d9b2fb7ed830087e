"""The rewards that `memdiff score` was asked for, checked. No torch."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from memdiff.errors import ConfigError
from memdiff.recipe.mistakes import one_line
from memdiff.recipe.reading import read_value
from memdiff.rewards.config import AnyPart, RewardPart, part_name
from memdiff.rewards.part_config import TextPart
from memdiff.runtime.section import Section


class GivenReward(Section):
    """One `--reward` of the command line, checked as a part of a recipe's reward is."""

    reward: RewardPart


def given_parts(rewards: Sequence[str | Mapping[str, Any]], *, with_prompts: bool) -> dict[str, AnyPart]:
    """Parts by name from `KIND` or `KIND:key=value,...`, or as a recipe has them. Raises ConfigError.

    Without prompts (`with_prompts`: every image has one) a part that compares images with text must bring its own.
    """
    parts: dict[str, AnyPart] = {}
    for text in rewards:
        raw = {"reward": _parse(text) if isinstance(text, str) else dict(text)}
        try:
            part = GivenReward.model_validate(raw).reward
        except ValidationError as error:
            raise ConfigError(f"--reward {text!s:.120}: {one_line(error, raw, GivenReward)}") from None
        if part_name(part) in parts:
            raise ConfigError(f"two rewards are named {part_name(part)}; give each a name: --reward {part.kind}:name=b")
        if isinstance(part, TextPart) and part.prompt is None and not with_prompts:
            raise ConfigError(
                f"--reward {part.kind} compares images with text, and no settings.json beside them has one for each: "
                f"give --prompt, or {part.kind}:prompt=..."
            )
        parts[part_name(part)] = part
    return parts


def _parse(text: str) -> Mapping[str, Any]:
    """`classifier:path=a,label=b` -> its mapping. A comma separates only where a key and `=` follow it."""
    kind, _, rest = text.partition(":")
    settings: dict[str, Any] = {"kind": kind}
    for setting in re.split(r",(?=\s*\w+=)", rest) if rest else ():
        key, separator, value = setting.strip().partition("=")
        if not separator or not key:
            raise ConfigError(f"--reward takes KIND or KIND:key=value,..., got {text!r:.120}")
        if key in settings:
            raise ConfigError(f"--reward {text:.120}: the key {key} is given twice")
        try:
            settings[key] = read_value(value)
        except ConfigError as error:
            raise ConfigError(f"--reward {text:.120}: {key}: {error}") from None
    return settings
