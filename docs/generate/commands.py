"""The blocks of README and of the pages that are commands or files, for the test that runs them.

A block in bash or Python has a comment on the line before it:

    <!-- run -->                 takes a second or two: the default tests run it
    <!-- run: slow -->           the slow tests run it
    <!-- not run: REASON -->     why it can't be run here

A block with a title is a file of that name, written where the commands run. Blocks of a page are run in their order, in
one empty folder.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r'(?:^<!-- (?P<note>[^>]*) -->\n)?^```(?P<language>\w+)(?: title="(?P<title>[\w.]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = ("bash", "python")
When = Literal["cheap", "slow", "never", "unmarked"]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `title` is the file that it is, empty for commands; `reason` why it is not run."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    when: When
    reason: str = ""

    @property
    def is_command(self) -> bool:
        """Whether a reader is to run it."""
        return self.language in LANGUAGES and not self.title


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page with their notes."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        note = match["note"] or ""
        kind, _, reason = note.partition(": ")
        when: When = "unmarked"
        if kind == "run":
            when = "slow" if reason == "slow" else "cheap"
        elif kind == "not run":
            when = "never"
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match["language"], match["title"] or "", match["text"], when, reason)


def script(page: Path, when: tuple[When, ...]) -> str:
    """One bash script of the page's blocks of this kind, in their order; files are written where they stand."""
    lines = ["set -eu"]
    for block in blocks(page):
        if block.title:
            lines.append(f"cat > {block.title} <<'END_OF_FILE'\n{block.text}END_OF_FILE")
        elif block.is_command and block.when in when:
            lines.append(f"echo '--- {page.name}, line {block.line}'")
            lines.append(
                block.text if block.language == "bash" else f"python - <<'END_OF_FILE'\n{block.text}END_OF_FILE"
            )
    return "\n".join(lines) + "\n"
