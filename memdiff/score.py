"""Scores image files with rewards and shows what came out: the work of `memdiff score`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from memdiff.errors import ConfigError
from memdiff.models.quiet import quiet_libraries
from memdiff.ranks import device_of_this_process
from memdiff.rewards.build import build_reward
from memdiff.rewards.config import AnyPart
from memdiff.rewards.score_images import find_images, score_images, score_table, scores_json


def score_files(
    sources: Sequence[str], parts: Mapping[str, AnyPart], prompts: Sequence[str], *, json_file: Path | None = None
) -> None:
    """Prints a table and writes JSON. The same images in the same order as `find_images`.

    Raises ConfigError for what can't be read, loaded or written, RewardError for a reward that fails.
    """
    images = find_images(sources)
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json {json_file}: no such folder: {json_file.resolve().parent}")
    quiet_libraries()
    device = device_of_this_process()
    rewards = {name: build_reward(part, device=device) for name, part in parts.items()}
    chunk = min(part.chunk for part in parts.values())
    screen = Console(stderr=True)
    rows = score_images(
        images, rewards, prompts, device=device, chunk=chunk, console=screen if screen.is_terminal else None
    )
    if json_file is not None:
        try:
            json_file.write_text(scores_json(rows) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json {json_file} can't be written: {error.strerror}") from None
    Console().print(score_table(rows))
