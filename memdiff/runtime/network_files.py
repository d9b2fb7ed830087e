"""Folders of networks, before a library reads them: what it would wait for, or go on building without end. No torch."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memdiff.errors import ConfigError
from memdiff.runtime.small_files import read_small_file

CONFIG = "config.json"
MOST_CONFIG_BYTES = 10**7
OF_LAYERS = re.compile(r"(^|_)layers?(_|$)|(^|_)depths?$|(^|_)num_\w*blocks$")  # of keys that count them
MOST_LAYERS = 1000  # ten times those of the largest networks that are trained or score here


def trouble_in(folder: Path) -> str | None:
    """Why nobody should read a folder, two levels deep, in a line: a pipe, socket or device; layers without end."""
    entries = sorted((*folder.glob("*"), *folder.glob("*/*")))
    for entry in entries:
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            return f"{entry} is no regular file; give a folder of files"
    for entry in entries:
        key = next(_endless(_content(entry)), None) if entry.name == CONFIG and entry.is_file() else None
        if key is not None:
            return f"{entry} asks for more than {MOST_LAYERS} of {key:.60}; fetch it again"
    return None


def _content(file: Path) -> Any:
    """None where it can't be read, which is for the library to say."""
    try:
        return json.loads(read_small_file(file, what="the config", most_bytes=MOST_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError, ConfigError):
        return None


def _endless(node: Any, key: str = "", depth: int = 0) -> Iterator[str]:
    """Keys that count more layers than there are, in sections and lists of numbers too."""
    if depth > 8:
        return
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _endless(value, name, depth + 1)
    elif isinstance(node, list):
        for value in node:
            yield from _endless(value, key, depth + 1)
    elif isinstance(node, int | float) and node > MOST_LAYERS and OF_LAYERS.search(key):
        yield key
