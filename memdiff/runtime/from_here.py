"""Paths as a person sees them who stands in a folder: those below it without its own. No torch."""

import re
import shlex
from pathlib import Path


def from_here(text: str) -> str:
    """The text, with absolute paths below the current folder as seen from there."""
    try:
        here = str(Path.cwd())
    except OSError:  # it was removed
        return text
    if here == "/" or here not in text:
        return text
    return re.sub(rf"(?<![\w./~-]){re.escape(here)}/(?=[^\s/])", "", text)


def shell_word(path: Path) -> str:
    """A path as it can be typed into a shell here."""
    return shlex.quote(from_here(str(path)))
