"""Pages of this house's look: one file without scripts that opens from a file://, written whole or not at all.

Every string of a run is taken as hostile: jinja2 escapes all of them, letters that would reorder or hide text are
replaced, pixels are re-encoded, and the page's own policy allows its one style sheet and `data:` images, nothing else.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import memdiff
from memdiff.errors import ConfigError
from memdiff.reporting.words import printable, short

HERE = Path(__file__).parent


def render_page(template: Path, **values: Any) -> str:
    """A page: `values`, with every string of them escaped, in a template that may build on those of this room."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["short"] = short
    return environment.get_template(template.name).render(
        # The sheet is the package's own text, and its hash must match it letter for letter.
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        version=memdiff.__version__,
        **values,
    )


def _printable_text(value: Any) -> Any:
    return value if isinstance(value, Markup) else printable(value)


def write_page(page: str, target: Path) -> Path:
    """The page under its name, whole. Raises ConfigError where it can't be written."""
    part = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:  # x: a link planted under this name is not followed
            file.write(page.encode("utf-8"))
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"can't write {target}: {error.strerror}. Free space or change its permissions.") from error
    return target
