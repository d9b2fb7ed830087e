"""What mkdocs calls while it builds: https://www.mkdocs.org/dev-guide/plugins/#events."""

import re
from typing import Any

from mkdocs.structure.files import File

from docs.generate.messages import with_messages
from docs.generate.recipe_keys import recipe_page

COMMENT = re.compile(r"^<!-- (?:run|not run)\b.*?-->\n", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Adds the page of all keys, which no file holds."""
    files.append(File.generated(config, "recipe.md", content=recipe_page()))
    return files


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
