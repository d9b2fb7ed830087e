"""The base of every recipe section. Imports pydantic only, so that a mistake is told before torch is loaded."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def _refuse_bool(value: object) -> object:
    """YAML reads `yes`, `no`, `on`, `off` as booleans, and pydantic would read those as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not yes/no")
    return value


Int = Annotated[int, BeforeValidator(_refuse_bool)]
Float = Annotated[float, BeforeValidator(_refuse_bool)]
