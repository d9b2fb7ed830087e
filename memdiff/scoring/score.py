"""Scores image files with rewards and shows what came out: the work of `memdiff score`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.console import Console

from memdiff.errors import ConfigError
from memdiff.models.quiet import quiet_libraries
from memdiff.rewards.backbones import Backbones
from memdiff.rewards.build import build_reward
from memdiff.rewards.config import AnyPart
from memdiff.runtime.ranks import device_of_this_process
from memdiff.runtime.screen import screen
from memdiff.scoring.images import ScoreRow, not_finite, score_images, score_table, scores_json, summary_table


def score_files(
    images: Sequence[Path],
    parts: Mapping[str, AnyPart],
    prompts: Sequence[str],
    *,
    json_file: Path | None = None,
    each: bool = False,
) -> None:
    """Prints a summary, and with `each` a row an image; writes all of it as JSON. `prompts`: one for all, or for each.

    Raises ConfigError for what can't be read, loaded or written, RewardError for a reward that fails.
    """
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json {json_file}: no such folder: {json_file.resolve().parent}")
    rows = score_rows(images, parts, prompts)
    if json_file is not None:
        try:
            json_file.write_text(scores_json(rows) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json {json_file} can't be written: {error.strerror}") from None
    screen = Console()
    screen.print(summary_table(rows))
    if each:
        screen.print(score_table(rows))
    for line in not_finite(rows):
        typer.echo(f"memdiff: {line}", err=True)


def score_rows(images: Sequence[Path], parts: Mapping[str, AnyPart], prompts: Sequence[str]) -> list[ScoreRow]:
    """Loads the rewards and scores the images, a row per image in their order. Raises ConfigError and RewardError."""
    quiet_libraries()
    device = device_of_this_process()
    backbones = Backbones()
    rewards = {name: build_reward(part, device=device, backbones=backbones) for name, part in parts.items()}
    chunk = min(part.chunk for part in parts.values())
    progress = screen(stderr=True)
    return score_images(
        images, rewards, prompts, device=device, chunk=chunk, console=progress if progress.is_terminal else None
    )
