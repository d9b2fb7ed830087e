"""A function in a user's own file as a reward.

Shapes: B images.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memdiff.errors import RewardError
from memdiff.rewards.config import PythonConfig
from memdiff.rewards.handed_over import HERE, called, handed_over
from memdiff.rewards.python_file import load_function
from memdiff.rewards.reward import checked

MIB = 2**20


class PythonReward:
    """Calls `score(images_BCHW, prompts)`. Fulfils memdiff.rewards.reward.Reward.

    The function may return a tensor, a numpy array or a list; it must hold one number an image. Images and list are its
    own copies, to write into and to keep, and what it returns is copied: it may return the same buffer every time.
    """

    networks: Sequence[torch.nn.Module] = ()

    def __init__(self, config: PythonConfig, function: Callable[[torch.Tensor, list[str]], Any]) -> None:
        self.config, self.differentiable, self._function = config, config.differentiable, function

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores, B fp32 on the images' device. RewardError names file, function and cause where it fails."""
        where = f"{Path(self.config.file).name}:{self.config.function}"
        if self.config.file == HERE:
            where = called(self.config.function)
        try:
            # a view in numpy or through .data could write unseen, so that looking for a write would not do
            result = self._function(images_BCHW.clone(), list(prompts))
        except torch.OutOfMemoryError:
            raise  # the caller makes the piece again in halves
        except (Exception, SystemExit) as error:  # a user's code may raise anything, and the user is told what
            raise RewardError(f"reward {where} raised {type(error).__name__}: {error}") from error
        if isinstance(result, np.ndarray):
            result = result.tolist()  # torch takes no reversed, read-only or big-endian arrays
        try:
            scores = torch.as_tensor(result)
        except (TypeError, ValueError, RuntimeError):
            scores = result  # no numbers: refused below
        return checked(scores, count=len(images_BCHW), name=where).to(images_BCHW.device, copy=True)


def load_python(config: PythonConfig) -> PythonReward:
    """Imports the user's file, or takes the function that a program handed over. Raises ConfigError in one line."""
    if config.file == HERE:
        return PythonReward(config, handed_over(config.function))
    return PythonReward(config, load_function(Path(config.file), config.function))


def skeleton_python(config: PythonConfig) -> PythonReward:
    """The file is not run: it may not work on fake tensors. `gpu_mib` are taken on the images' device in its place."""

    def take_memory(images_BCHW: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        del prompts
        held = torch.empty(config.gpu_mib * MIB, dtype=torch.uint8, device=images_BCHW.device)
        scores_B = images_BCHW.float().mean(dim=(1, 2, 3))
        del held
        return scores_B

    return PythonReward(config, take_memory)
