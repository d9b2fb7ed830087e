"""What mkdocs calls while it builds: https://www.mkdocs.org/dev-guide/plugins/#events."""

import re
from typing import Any

from docs.generate.messages import with_messages

COMMENT = re.compile(r"^<!-- (?:run|not run)\b.*?-->\n", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lists of messages in the places of their markers; the notes for the test of commands go."""
    if page.file.src_uri == "troubleshooting.md":
        markdown = with_messages(markdown)
    return COMMENT.sub("", markdown)


def on_post_page(output: str, **_: Any) -> str:
    """The theme's search is a dialog without a name."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
