"""A function in a user's own file as a reward.

Shapes: B images.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from memdiff.errors import ConfigError, RewardError
from memdiff.rewards.config import PythonConfig


class PythonReward:
    """Calls `score(images_BCHW, prompts)`. Fulfils memdiff.rewards.reward.Reward.

    The function may return a tensor, a numpy array or a list; it must hold one number an image.
    """

    networks: Sequence[torch.nn.Module] = ()

    def __init__(self, config: PythonConfig) -> None:
        self.config = config
        self.differentiable = config.differentiable
        self._function = _load_function(Path(config.file), config.function)

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores, B fp32 on the images' device. RewardError names file, function and cause where it fails."""
        where = f"{Path(self.config.file).name}:{self.config.function}"
        try:
            result = self._function(images_BCHW, list(prompts))
        except Exception as error:  # a user's code may raise anything, and the user is told what
            raise RewardError(f"reward {where} raised {type(error).__name__}: {error}") from error
        if isinstance(result, torch.Tensor):
            return result.to(images_BCHW.device)
        try:
            return torch.as_tensor(result, dtype=torch.float32, device=images_BCHW.device)
        except (TypeError, ValueError, RuntimeError):
            raise RewardError(
                f"reward {where} must return {len(images_BCHW)} numbers, got {type(result).__name__}"
            ) from None


def _load_function(file: Path, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"memdiff_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"reward file {file} is not a Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # importing a user's file may raise anything
        raise ConfigError(f"reward file {file} can't be imported: {type(error).__name__}: {error}") from error
    function = vars(module).get(name)
    if not callable(function):
        raise ConfigError(f"reward file {file} has no function {name}")
    return function
