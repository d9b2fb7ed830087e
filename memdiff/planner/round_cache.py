"""The round cache: measured rounds that outlast a process, one file each with the user's caches. No torch.

A round follows from what is in its key: the versions of the libraries, memdiff's own sources, the recipe's sections
that build networks and the algorithm, what local paths hold, and the round itself. Neither a budget nor a card is in
it. What can't be read, or is not what was written, is measured again.
"""

import hashlib
import json
import os
import platform
import tempfile
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import memdiff
from memdiff.planner.measured import Measured
from memdiff.recipe.contents import contents_of
from memdiff.recipe.recipe import Recipe

VARIABLE = "MEMDIFF_PLAN_CACHE"  # a folder; empty: nothing is cached
PACKAGES = ("torch", "diffusers", "transformers", "peft")
SECTIONS = ("model", "adapter", "trained_modules", "sampler", "method", "reward")
MOST = 500  # files of 3 kB


class RoundCache:
    """Measured rounds of one recipe, by what they follow from. `folder` None caches nothing."""

    def __init__(self, recipe: Recipe, folder: Path | None) -> None:
        self._folder = folder
        self._recipe = {} if folder is None else _deciding(recipe)

    def read(self, round_number: dict[str, Any]) -> Measured | None:
        """What was measured of `round_number`'s round; None where it has to be measured."""
        if self._folder is None:
            return None
        try:
            stored = json.loads(self._file(round_number).read_text())
            return Measured.from_json(stored["measured"]) if stored["sum"] == _sum(stored["measured"]) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, round_number: dict[str, Any], measured: Measured) -> None:
        """Whole or not at all; a folder that can't be written holds nothing."""
        if self._folder is None:
            return
        content = measured.to_json()
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._folder, suffix=".part", delete=False) as file:
                json.dump({"sum": _sum(content), "measured": content}, file)
            Path(file.name).replace(self._file(round_number))
            _drop_oldest(self._folder)

    def _file(self, round_number: dict[str, Any]) -> Path:
        assert self._folder is not None
        return self._folder / f"{_sum({'recipe': self._recipe, 'round': round_number})}.json"


def users_cache() -> Path | None:
    """Where MEMDIFF_PLAN_CACHE says, else with the user's other caches; None where it is empty."""
    said = os.environ.get(VARIABLE)
    if said is not None:
        return Path(said) if said else None
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "memdiff" / "rounds"


def _deciding(recipe: Recipe) -> dict[str, Any]:
    whole = recipe.model_dump(mode="json")
    return {
        "versions": _versions(),
        "sources": _sources(),
        "held_out": whole["evaluate"]["rewards"],
        "contents": contents_of(recipe),
        **{section: whole[section] for section in SECTIONS},
    }


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


@cache
def _sources() -> str:
    root = Path(memdiff.__file__).parent
    whole = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        whole.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()


def _sum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _drop_oldest(folder: Path) -> None:
    files = list(folder.glob("*.json"))
    if len(files) > MOST:
        for file in sorted(files, key=lambda file: file.stat().st_mtime)[: MOST // 10]:
            file.unlink(missing_ok=True)
