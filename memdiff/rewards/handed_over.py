"""Reward functions that a Python program hands over: they have no file that a recipe could name. No torch."""

from collections.abc import Callable
from typing import Any

from memdiff.errors import ConfigError

HERE = "<this program>"  # the file of such a function in a recipe

Function = Callable[..., Any]
_functions: dict[str, Function] = {}


def hand_over(function: Function) -> dict[str, str]:
    """The function as a part of a recipe's reward: `{kind, file, function}`. A later one of that name replaces it."""
    name = getattr(function, "__name__", type(function).__name__)
    name = name if name.isidentifier() else "reward"  # a lambda's name is none
    _functions[name] = function
    return {"kind": "python", "file": HERE, "function": name}


def called(name: str) -> str:
    """What messages call the function of that name: `dark of this program`, and a lambda so."""
    function = _functions.get(name)
    own = getattr(function, "__name__", type(function).__name__)
    return f"{'lambda' if own == '<lambda>' else own} of this program"


def handed_over(name: str) -> Function:
    """The function of that name. Raises ConfigError in a process that it was not handed to."""
    if name not in _functions:
        raise ConfigError(
            f"the reward function {name} was handed over by a Python program and is not here; call memdiff.train there "
            "again, or put the function into a file and name it in the recipe"
        )
    return _functions[name]
